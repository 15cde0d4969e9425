//! Names of models in the hub's cache.

use std::fs;

use crate::{Said, fixtures, mixtral};

#[test]
fn parts_of_a_repository_in_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("models--org--Mixtral-GGUF");
    let snapshot = folder.join("snapshots/0123");
    fs::create_dir_all(snapshot.join("Q6_K")).unwrap();
    fs::create_dir_all(folder.join("refs")).unwrap();
    fs::write(folder.join("refs/main"), "0123").unwrap();
    for (from, to) in [("Q2_K", "m.Q2_K.gguf"), ("Q3_K_M", "m.Q3_K_M.gguf"), ("Q6_K", "Q6_K/m-Q6_K.gguf")] {
        fs::copy(fixtures().join("gguf").join(from).with_extension("gguf"), snapshot.join(to)).unwrap();
    }
    let inspect = |name: &str| -> Said {
        mixtral("inspect -m {}", &[name]).env("HF_HUB_CACHE", cache.path()).output().unwrap().into()
    };
    for (name, file) in [
        ("org/Mixtral-GGUF:Q2_K", "m.Q2_K.gguf"),
        ("org/Mixtral-GGUF:q3_k_m", "m.Q3_K_M.gguf"),
        ("org/Mixtral-GGUF:Q6_K", "Q6_K/m-Q6_K.gguf"),
        ("org/Mixtral-GGUF/m.Q3_K_M.gguf", "m.Q3_K_M.gguf"),
        ("org/Mixtral-GGUF/Q6_K", "Q6_K/m-Q6_K.gguf"),
    ] {
        let said = inspect(name);
        let expected = format!("GGUF file {}, version 3", snapshot.join(file).display());
        assert!(said.out.contains(&expected), "{name}: {said:?}");
    }
    for (name, expected) in [
        ("org/Mixtral-GGUF", "2 of them, m.Q2_K.gguf the first: name one"),
        ("org/Mixtral-GGUF:Q5_K_M", "0 such among: m.Q2_K.gguf, m.Q3_K_M.gguf, Q6_K/m-Q6_K.gguf"),
        ("org/Mixtral-GGUF/m.Q8_0.gguf", "m.Q8_0.gguf: No such file"),
        ("org/Mixtral-GGUF/../0123", "nothing of that name"),
        ("org/Mixtral:Q2_K", "nothing is downloaded"),
    ] {
        let said = inspect(name);
        assert_eq!(said.status, Some(1), "{name}: {said:?}");
        assert!(said.err.contains(expected), "{name}: {said:?}");
    }
}
