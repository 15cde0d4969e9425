//! The hub's cache: `models--ORGANISATION--NAME/` with `refs/main`, a file that holds the name of a folder of `snapshots/`.

use std::env;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::input::read_limited;
use crate::{Error, Result};

/// A snapshot's name is a commit: 40 digits.
const MAX_REF_BYTES: u64 = 256;

/// Whether this may be the name of a repository: two words with a slash between them.
pub(super) fn is_repository_name(name: &Path) -> bool {
    let mut components = name.components();
    let mut word = || matches!(components.next(), Some(Component::Normal(_)));
    word() && word() && components.next().is_none()
}

/// What a name means of the cache.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Within {
    /// The repository's folder.
    pub(super) folder: PathBuf,
    /// What of it; all, where nothing is said.
    pub(super) part: Option<Part>,
}

/// A part of a repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A file or a folder: `ORGANISATION/NAME/PATH`.
    Path(PathBuf),
    /// The GGUF file of a type: `ORGANISATION/NAME:TYPE`.
    Type(String),
}

/// What the cache has of a name.
pub(super) fn within(name: &Path) -> Option<Within> {
    if let Some(folder) = repository(name) {
        return Some(Within { folder, part: None });
    }
    if let Some((of, wanted)) = name.to_str()?.rsplit_once(':')
        && let Some(folder) = repository(Path::new(of))
    {
        return Some(Within { folder, part: Some(Part::Type(wanted.to_owned())) });
    }
    let mut components = name.components();
    let of: PathBuf = components.by_ref().take(2).collect();
    let path = components.as_path();
    // Nothing outside of it.
    let inside = path.components().all(|component| matches!(component, Component::Normal(_)));
    let folder = repository(&of).filter(|_| inside)?;
    Some(Within { folder, part: Some(Part::Path(path.to_path_buf())) })
}

/// The folder of a repository in the cache.
fn repository(name: &Path) -> Option<PathBuf> {
    let name = name.to_str().filter(|_| is_repository_name(name))?;
    let folder = caches().map(|cache| cache.join(format!("models--{}", name.replace('/', "--"))));
    folder.into_iter().find(|folder| folder.is_dir())
}

/// Where the cache is, by the environment.
pub(super) fn caches() -> Option<PathBuf> {
    let path = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    path("HF_HUB_CACHE")
        .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(path("HF_HOME")?.join("hub")))
        .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(path("HOME").or_else(|| path("USERPROFILE"))?.join(".cache/huggingface/hub")))
}

/// The snapshot of a repository's folder that `refs/main` names, or the only one there is; `None` for a folder of another kind.
///
/// # Errors
///
/// [`Error::Checkpoint`] where there are several and none is named, or the one that is named is missing.
pub(super) fn snapshot(folder: &Path) -> Result<Option<PathBuf>> {
    let snapshots = folder.join("snapshots");
    if !snapshots.is_dir() {
        return Ok(None);
    }
    let main = folder.join("refs/main");
    if main.is_file() {
        let text = read_limited(&main, MAX_REF_BYTES)?;
        let name = String::from_utf8_lossy(&text).trim().to_owned();
        let mut components = Path::new(&name).components();
        let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
        let snapshot = snapshots.join(&name);
        if plain && snapshot.is_dir() {
            return Ok(Some(snapshot));
        }
        let found = format!("{:?}, which is none of {}", name, snapshots.display());
        return Err(Error::checkpoint(&main, "the name of a snapshot", found));
    }
    let entries = fs::read_dir(&snapshots).map_err(|source| Error::Io { path: snapshots.clone(), source })?;
    let mut all: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    match (all.pop(), all.is_empty()) {
        (Some(only), true) => Ok(Some(only)),
        (None, _) => Err(Error::checkpoint(&snapshots, "a snapshot", "none".to_owned())),
        _ => Err(Error::checkpoint(
            &snapshots,
            "refs/main, or one snapshot",
            "several and no refs/main".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_repositories() {
        for (name, is) in [
            ("a/b", true),
            ("a", false),
            ("a/b/c", false),
            ("../b", false),
            ("/a/b", false),
            ("./a/b", false),
        ] {
            assert_eq!(is_repository_name(Path::new(name)), is, "{name}");
        }
    }

    #[test]
    fn snapshots() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        assert_eq!(snapshot(folder).unwrap(), None);
        fs::create_dir_all(folder.join("snapshots")).unwrap();
        assert!(snapshot(folder).unwrap_err().to_string().contains("expected a snapshot, found none"));
        fs::create_dir_all(folder.join("snapshots/aa")).unwrap();
        assert_eq!(snapshot(folder).unwrap(), Some(folder.join("snapshots/aa")));
        fs::create_dir_all(folder.join("snapshots/bb")).unwrap();
        assert!(snapshot(folder).unwrap_err().to_string().contains("several and no refs/main"));
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::write(folder.join("refs/main"), "bb\n").unwrap();
        assert_eq!(snapshot(folder).unwrap(), Some(folder.join("snapshots/bb")));
        for bad in ["cc", "../snapshots/bb", "", "/"] {
            fs::write(folder.join("refs/main"), bad).unwrap();
            assert!(
                snapshot(folder).unwrap_err().to_string().contains("expected the name of a snapshot"),
                "{bad}"
            );
        }
    }
}
