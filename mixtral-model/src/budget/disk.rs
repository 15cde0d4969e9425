//! How experts are read from files, and how fast.

use std::io;
use std::str::FromStr;
use std::time::{Duration, Instant};

use memmap2::MmapMut;

use super::fetch::Readers;
use super::place::ExpertPlace;
use super::store::{STREAMED, memory_for};

/// Experts that are read in each of both ways to see which is faster.
const TRIED: usize = 2;
/// What reading through the page cache must save to be chosen: the system copies every byte then, in time that products could have.
const WORTH: f64 = 0.8;
/// Bytes that are read to see how fast the disk is, at most, and time that is taken for it.
const PROBED: u64 = 1 << 30;
const PATIENCE: Duration = Duration::from_secs(2);

/// How files are read whose bytes are not to stay in the system's page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskReads {
    /// As is found to be faster when the model is loaded: some experts are read in both ways.
    #[default]
    Measured,
    /// Past the page cache, where system and file system allow that.
    Direct,
    /// Through the page cache, from which all that was read is dropped at once.
    Cached,
}

impl FromStr for DiskReads {
    type Err = String;

    /// Of `measured`, `direct` or `cached`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "measured" => Ok(Self::Measured),
            "direct" => Ok(Self::Direct),
            "cached" => Ok(Self::Cached),
            _ => Err("expected measured, direct or cached".to_owned()),
        }
    }
}

impl DiskReads {
    /// Has the experts' files be read so. Says whether that is directly; none where there are no files.
    pub(super) fn choose(self, places: &[Vec<ExpertPlace>]) -> io::Result<Option<bool>> {
        let all = || places.iter().flatten();
        let set = |directly: bool| all().for_each(|place| place.read_directly(directly));
        set(self != Self::Cached);
        if self == Self::Measured && all().any(ExpertPlace::is_direct) {
            let (readers, mut left, mut took) = (Readers::new()?, Vec::new(), [Duration::ZERO; 2]);
            // In turns, and from all over the model.
            let apart = (all().count() / (2 * TRIED)).max(1);
            for (n, place) in all().step_by(apart).take(2 * TRIED).enumerate() {
                place.read_directly(n % 2 == 0);
                place.forget();
                let begun = Instant::now();
                read(&readers, &[place], &mut left)?;
                took[n % 2] += begun.elapsed();
            }
            let [direct, cached] = took.map(|took| took.as_secs_f64());
            set(cached >= WORTH * direct);
        }
        let mut files = all().filter(|place| place.is_file()).peekable();
        Ok(files.peek().is_some().then(|| files.all(ExpertPlace::is_direct)))
    }
}

/// Bytes a second of reading experts as a pass reads them; none for weights that are no file.
pub(super) fn speed(places: &[Vec<ExpertPlace>]) -> io::Result<Option<f64>> {
    let mut bytes = 0;
    let some = places.iter().flatten().take_while(|place| {
        let more = bytes < PROBED && place.is_file();
        bytes += place.bytes();
        more
    });
    let some: Vec<_> = some.collect();
    let (readers, begun, mut left) = (Readers::new()?, Instant::now(), Vec::new());
    // Two at a time, as a token's experts of a layer are read.
    for pair in some.chunks(STREAMED).take_while(|_| begun.elapsed() < PATIENCE) {
        read(&readers, pair, &mut left)?;
    }
    let (read, took) = readers.read();
    Ok(Some(read as f64 / took.as_secs_f64()).filter(|speed| speed.is_finite() && !some.is_empty()))
}

/// Reads experts at once, into memory that was left over or new, and leaves it over.
fn read(readers: &Readers, places: &[&ExpertPlace], left: &mut Vec<MmapMut>) -> io::Result<()> {
    let mut fetch = readers.fetch();
    for (n, place) in places.iter().enumerate() {
        fetch.ask(n, place, memory_for(place, left).map_err(io::Error::other)?);
    }
    left.clear();
    while let Some((_, loaded)) = fetch.next() {
        left.extend(loaded.map_err(|(_, error)| error)?.into_memory());
    }
    Ok(())
}
