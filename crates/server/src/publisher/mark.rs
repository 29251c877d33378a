//! How far was published, kept outside of the ledger's own file.
//!
//! A ledger that is restored from a backup ends before what was published from it, and going on would use sequences
//! twice (design rule 9). A broker that remembers gives it away; this file does so where the broker forgets, as the
//! embedded one does. It is written a moment after the fact, so that its fsync does not stand in the way of those of
//! the ledger: nobody restores a backup that is a moment old.
//!
//! # Shape
//!
//! Text: a first line that names the format, then one line for each realm with its name, term and sequence.
//!
//! ```text
//! revocast-published 1
//! fleet 1 4711
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use revocast_core::{RealmId, Sequence, Term};
use thiserror::Error;
use tokio::sync::Notify;

const FILE: &str = "published.mark";

/// What is written first and then takes the place of the other.
const FILE_NEW: &str = "published.mark.new";

const HEADER: &str = "revocast-published 1";

/// Ten thousand realms with the longest names fit. A larger file is something else.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The highest term and sequence of every realm that a broker has acknowledged a manifest of.
#[derive(Debug)]
pub struct HighWater {
    folder: PathBuf,
    marks: Mutex<BTreeMap<RealmId, (Term, Sequence)>>,
    raised: Notify,
}

impl HighWater {
    /// Reads what was written in `folder`; nothing if there is no such file.
    pub fn open(folder: &Path) -> Result<Self, HighWaterError> {
        let path = folder.join(FILE);
        let io = |source| HighWaterError::Io { path: path.clone(), source };
        let mut text = String::new();
        match File::open(&path) {
            Ok(file) => file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(io)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::with(folder, BTreeMap::new()));
            }
            Err(error) => return Err(io(error)),
        };
        let marks = parse(&text).map_err(|line| HighWaterError::Damaged { path: path.clone(), line })?;
        Ok(Self::with(folder, marks))
    }

    fn with(folder: &Path, marks: BTreeMap<RealmId, (Term, Sequence)>) -> Self {
        Self { folder: folder.to_owned(), marks: Mutex::new(marks), raised: Notify::new() }
    }

    /// Every realm that has a mark.
    #[must_use]
    pub fn all(&self) -> Vec<(RealmId, Term, Sequence)> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.iter().map(|(&realm, &(term, sequence))| (realm, term, sequence)).collect()
    }

    /// The sequence that was published, if a ledger at this head ends before it.
    #[must_use]
    pub fn beyond(&self, realm: RealmId, head: (Term, Sequence)) -> Option<Sequence> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.get(&realm).filter(|mark| **mark > head).map(|(_, sequence)| *sequence)
    }

    /// Notes what was published. Nothing is written yet.
    pub fn raise(&self, realm: RealmId, published: (Term, Sequence)) {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = marks.entry(realm).or_default();
        if *mark < published {
            *mark = published;
            self.raised.notify_one();
        }
    }

    /// Waits until there is something to write.
    pub(super) async fn raised(&self) {
        self.raised.notified().await;
    }

    /// Writes all marks down, durably. Blocks.
    pub fn write(&self) -> io::Result<()> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut text = format!("{HEADER}\n");
        for (realm, (term, sequence)) in marks {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "{realm} {term} {sequence}");
        }
        let new = self.folder.join(FILE_NEW);
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        // Without it a power cut could leave the name with nothing behind it.
        file.sync_all()?;
        fs::rename(&new, self.folder.join(FILE))
    }
}

/// Gives the line that is wrong, from 1.
fn parse(text: &str) -> Result<BTreeMap<RealmId, (Term, Sequence)>, usize> {
    let mut marks = BTreeMap::new();
    let mut lines = text.lines().zip(1_usize..);
    if lines.next().is_none_or(|(line, _)| line != HEADER) {
        return Err(1);
    }
    for (line, number) in lines {
        let mut words = line.split(' ');
        let mark = (|| {
            let realm = RealmId::new(words.next()?).ok()?;
            let term = Term(words.next()?.parse().ok()?);
            let sequence = Sequence(words.next()?.parse().ok()?);
            words.next().is_none().then_some((realm, (term, sequence)))
        })();
        let (realm, mark) = mark.ok_or(number)?;
        marks.insert(realm, mark);
    }
    Ok(marks)
}

/// Why it is not known how far was published.
#[derive(Debug, Error)]
pub enum HighWaterError {
    /// The file cannot be read. The operator's to mend.
    #[error("{} cannot be read", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file was damaged or edited. Whoever knows that the ledger was not restored removes it; it is written anew.
    #[error(
        "{} line {line} is not what was written there; if the ledger was not restored from a backup, remove the file",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn realm(name: &str) -> RealmId {
        RealmId::new(name).unwrap()
    }

    #[test]
    fn what_was_published_is_known_after_a_restart_and_never_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let mark = HighWater::open(folder.path()).unwrap();
        assert_eq!(mark.beyond(realm("a"), (Term(1), Sequence(0))), None, "nothing was published");
        mark.raise(realm("a"), (Term(1), Sequence(7)));
        mark.raise(realm("b"), (Term(2), Sequence(3)));
        mark.raise(realm("a"), (Term(1), Sequence(5)));
        mark.write().unwrap();
        let mark = HighWater::open(folder.path()).unwrap();
        assert_eq!(mark.beyond(realm("a"), (Term(1), Sequence(6))), Some(Sequence(7)));
        assert_eq!(mark.beyond(realm("a"), (Term(1), Sequence(7))), None);
        assert_eq!(mark.beyond(realm("a"), (Term(2), Sequence(1))), None, "another term has its own count");
        assert_eq!(mark.beyond(realm("b"), (Term(1), Sequence(900))), Some(Sequence(3)), "a term that was published");
    }

    #[test]
    fn a_damaged_mark_is_refused_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        for (text, at) in
            [("", 1), ("garbage", 1), ("revocast-published 1\na 1\n", 2), ("revocast-published 1\na 1 2\nb 1 2 3\n", 3)]
        {
            fs::write(folder.path().join(FILE), text).unwrap();
            let error = HighWater::open(folder.path()).unwrap_err();
            assert!(matches!(error, HighWaterError::Damaged { line, .. } if line == at), "{text:?}: {error}");
        }
    }
}
