//! The `mixtral` command.

fn main() {}
