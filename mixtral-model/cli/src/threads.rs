//! How many threads to work with where nobody says.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;

/// One thread for each physical core that this process may run on: threads of one core share its arithmetic, and a second
/// would only wait for the first. A control group's quota of processor time may allow less.
pub(crate) fn default() -> NonZeroUsize {
    let allowed = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let cores = cores(Path::new("/sys/devices/system/cpu"), Path::new("/proc/self/status"));
    cores.map_or(allowed, |cores| cores.min(allowed))
}

/// The cores of the processors that `status` allows, by the topology in `cpus`, where the system tells.
fn cores(cpus: &Path, status: &Path) -> Option<NonZeroUsize> {
    let status = fs::read_to_string(status).ok()?;
    let allowed = processors(status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?)?;
    // A core is known by its first processor. Some that are allowed may be switched off, and have no topology.
    let core = |cpu: &usize| {
        let siblings = cpus.join(format!("cpu{cpu}/topology/thread_siblings_list"));
        processors(&fs::read_to_string(siblings).ok()?)?.first().copied()
    };
    NonZeroUsize::new(allowed.iter().filter_map(core).collect::<BTreeSet<_>>().len())
}

/// A list like `0-3,8`.
fn processors(list: &str) -> Option<BTreeSet<usize>> {
    /// More than any machine has.
    const MOST: usize = 1 << 16;
    let mut all = BTreeSet::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= MOST {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with these lists of siblings, on which a process may use some processors.
    fn machine(siblings: &[(usize, &str)], allowed: &str) -> Option<usize> {
        let dir = tempfile::tempdir().unwrap();
        for (cpu, list) in siblings {
            let topology = dir.path().join(format!("cpu{cpu}/topology"));
            fs::create_dir_all(&topology).unwrap();
            fs::write(topology.join("thread_siblings_list"), format!("{list}\n")).unwrap();
        }
        let status = dir.path().join("status");
        let lines =
            format!("Name:\tmixtral\nCpus_allowed:\tf\nCpus_allowed_list:\t{allowed}\nMems_allowed:\t1\n");
        fs::write(&status, lines).unwrap();
        cores(dir.path(), &status).map(NonZeroUsize::get)
    }

    #[test]
    fn one_thread_a_core() {
        let pairs =
            [(0, "0,4"), (1, "1,5"), (2, "2,6"), (3, "3,7"), (4, "0,4"), (5, "1,5"), (6, "2,6"), (7, "3,7")];
        assert_eq!(machine(&pairs, "0-7"), Some(4));
        // Two threads of one core, and one of another; either thread of a core counts for it.
        assert_eq!(machine(&pairs, "0,4-5"), Some(2));
        assert_eq!(machine(&pairs, "6"), Some(1));
        // Processors 8 to 63 are not there.
        assert_eq!(machine(&pairs, "0-63"), Some(4));
        let neighbours = [(0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")];
        assert_eq!(machine(&neighbours, "0-3"), Some(2));
        assert_eq!(machine(&[(0, "0"), (1, "1")], "0-1"), Some(2));
    }

    #[test]
    fn a_system_that_does_not_tell() {
        assert_eq!(machine(&[], "0-3"), None);
        assert_eq!(machine(&[(0, "0")], ""), None);
        assert_eq!(machine(&[(0, "what?")], "0"), None);
        assert_eq!(machine(&[(0, "0")], "0-99999999999"), None);
        assert_eq!(cores(Path::new("/nowhere"), Path::new("/nowhere")), None);
        assert!(default().get() >= 1);
    }
}
