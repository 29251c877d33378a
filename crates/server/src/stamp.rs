//! Notices that a file has changed.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What changes with a file's content, whether it is replaced or written in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// Of a file as it is; nothing if it is not there.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let about = fs::metadata(path).ok()?;
        let modified = (about.mtime(), about.mtime_nsec());
        Some(Self { inode: about.ino(), bytes: about.len(), modified })
    }
}
