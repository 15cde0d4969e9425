//! `mixtral lab`.

mod compare;
mod report;

use crate::args::{Lab, LabCommand};
use crate::failure::Result;
use crate::interrupt::Interrupt;

pub(crate) fn run(args: &Lab, interrupt: &Interrupt) -> Result<()> {
    match &args.command {
        LabCommand::Compare(args) => compare::run(args, interrupt),
    }
}
