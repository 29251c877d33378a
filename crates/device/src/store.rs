//! Where a replica's state survives a restart.
//!
//! Two slots for heads and two for base images. A write goes to the slot that is not needed, is
//! synced, read back and compared; only then does it count. So at every moment one good head and the
//! base it names are on disk, whatever the power does. What the bytes mean is verified by the replica
//! when it is restored; here only digests are compared.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use revocast_core::limits::{ARTIFACT_BYTES_MAX, STATE_BYTES_MAX};
use revocast_core::state::{Head, Image};
use revocast_core::{Digest, Digester};
use thiserror::Error;

/// Keeps what a replica asks to be kept.
///
/// Used by one driver at a time, from threads on which waiting is allowed.
pub trait Store: Send {
    /// The heads that are whole, newest first. What is damaged is left out and counted.
    fn heads(&mut self) -> Result<Heads, StoreError>;

    /// The base image with this digest, if it is there and whole.
    fn base(&mut self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError>;

    /// Keeps an image. When this returns, it has survived; until then, what was there before has.
    fn save(&mut self, image: &Image) -> Result<(), StoreError>;

    /// What was put into a slot last; `None` if nothing was. Damage is an error, and is never taken for content.
    fn slot(&mut self, slot: Slot) -> Result<Option<Vec<u8>>, StoreError>;

    /// Puts something into a slot. When this returns, it has survived; until then, what was there before has.
    fn put(&mut self, slot: Slot, bytes: &[u8]) -> Result<(), StoreError>;
}

/// What is kept beside the state of a replica, each for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// This device's own token, and how far its requests have been counted.
    Token,
    /// The issuer's public keys.
    IssuerKeys,
}

impl Slot {
    /// The name of its file.
    const fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::IssuerKeys => "issuer-keys",
        }
    }
}

/// Bytes of a slot: a token or a sealed set of keys at its limit, and some.
const SLOT_BYTES_MAX: u64 = 64 * 1024;

/// Bytes of the digest at the end of a slot.
const SLOT_DIGEST_BYTES: usize = 32;

/// What a store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heads {
    /// Heads whose own digest holds, newest first.
    pub candidates: Vec<Candidate>,
    /// Slots that hold something else than a head: a torn write, or rot.
    pub damaged: usize,
}

/// A head as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Rises with every image.
    pub revision: u64,
    /// The bytes.
    pub head: Vec<u8>,
    /// Digest of the base image it needs.
    pub base: Option<Digest>,
}

/// Why state could not be kept or read.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The file system said no. The operator's to mend: space, permissions, hardware.
    #[error("{} failed on {}", .step, .path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// Another process follows with this state folder; two would overwrite each other.
    #[error("{} is in use by another process", .path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// What was read back is not what was written: the medium is bad.
    #[error("{} does not hold what was just written to it", .path.display())]
    ReadBack {
        /// Which file.
        path: PathBuf,
    },
    /// A slot does not hold what was once written to it: rot, or somebody's hand.
    #[error("{} is damaged", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
    /// An image without the base that its head names. A fault of the caller.
    #[error("the image's base is neither in it nor in the store")]
    BaseMissing,
    /// An image whose head is damaged. A fault of the caller.
    #[error("the image's head is damaged")]
    Head(#[source] Box<revocast_core::Refusal>),
}

/// Keeps nothing: a device that restarts begins anew and answers `Unknown` until it has caught up.
///
/// For tests, and for devices that are told of their state by other means.
#[derive(Debug)]
pub struct VolatileStore;

impl Store for VolatileStore {
    fn heads(&mut self) -> Result<Heads, StoreError> {
        Ok(Heads::default())
    }

    fn base(&mut self, _digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }

    fn save(&mut self, _image: &Image) -> Result<(), StoreError> {
        Ok(())
    }

    fn slot(&mut self, _slot: Slot) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }

    fn put(&mut self, _slot: Slot, _bytes: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }
}

/// State in a folder of its own.
///
/// # Shape
///
/// ```text
/// head-a, head-b   heads; see revocast_core::state. Of two good ones the higher revision counts
/// base-a, base-b   base images; a head names one by its digest
/// token            the device's own token; bytes, then their SHA-256 (32)
/// issuer-keys      the issuer's public keys, sealed; likewise
/// lock             locked while a process uses the folder
/// ```
#[derive(Debug)]
pub struct DiskStore {
    folder: PathBuf,
    /// Revision and base of the head in each slot; `None` for an empty, torn or doubtful one.
    heads: [Option<(u64, Option<Digest>)>; 2],
    /// Digest of the base image in each slot; `None` for an empty or doubtful one.
    bases: [Option<Digest>; 2],
    /// Held for as long as the store lives.
    _lock: File,
}

const HEAD_SLOTS: [&str; 2] = ["head-a", "head-b"];
const BASE_SLOTS: [&str; 2] = ["base-a", "base-b"];

/// Bytes of a base image: an artifact at its limit, cutoffs and index.
const BASE_BYTES_MAX: u64 = ARTIFACT_BYTES_MAX + 1024 * 1024;

impl DiskStore {
    /// Opens the folder, makes it if it is not there, and locks it.
    ///
    /// Only its owner may enter: whoever can write here decides what this device believes until it is online.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        make_folder(folder)?;
        let lock_path = folder.join("lock");
        let lock = open_file(&lock_path, false)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked { path: folder.to_owned() });
            }
            Err(TryLockError::Error(source)) => {
                return Err(StoreError::Io { step: "locking", path: lock_path, source });
            }
        }
        // All files exist from here on, so that no later write depends on the folder being synced.
        let mut made = false;
        for path in HEAD_SLOTS.iter().chain(&BASE_SLOTS).map(|name| folder.join(name)) {
            if !path.exists() {
                made = true;
                let synced = open_file(&path, false)?.sync_all();
                synced.map_err(|source| StoreError::Io { step: "syncing", path, source })?;
            }
        }
        if made {
            sync_folder(folder)?;
        }
        let mut store = Self { folder: folder.to_owned(), heads: [None; 2], bases: [None; 2], _lock: lock };
        for (slot, name) in BASE_SLOTS.iter().enumerate() {
            let bytes = store.read(name, BASE_BYTES_MAX)?;
            store.set_base(slot, bytes.filter(|bytes| !bytes.is_empty()).map(|bytes| Digest::of(&bytes)));
        }
        store.heads()?;
        Ok(store)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn set_base(&mut self, slot: usize, digest: Option<Digest>) {
        if let Some(place) = self.bases.get_mut(slot) {
            *place = digest;
        }
    }

    fn set_head(&mut self, slot: usize, head: Option<(u64, Option<Digest>)>) {
        if let Some(place) = self.heads.get_mut(slot) {
            *place = head;
        }
    }

    /// The slot with the newest good head.
    fn newest(&self) -> Option<usize> {
        let good = self.heads.iter().enumerate().filter_map(|(slot, head)| head.map(|(revision, _)| (revision, slot)));
        good.max().map(|(_, slot)| slot)
    }

    /// The base that the newest good head needs.
    fn needed(&self) -> Option<Digest> {
        self.newest().and_then(|slot| self.heads.get(slot).copied().flatten()).and_then(|(_, base)| base)
    }

    /// The bytes of a slot; `None` if there are more than there may be.
    fn read(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.folder.join(name);
        let failed = |source| StoreError::Io { step: "reading", path: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        if length > bytes_max {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(length as usize);
        file.take(bytes_max).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Some(bytes))
    }

    /// Writes a slot piece by piece, syncs it, reads it back and compares.
    fn write(&self, name: &str, pieces: impl FnOnce(&mut dyn FnMut(&[u8]))) -> Result<(), StoreError> {
        let path = self.folder.join(name);
        let failed = |step| {
            let path = path.clone();
            move |source| StoreError::Io { step, path, source }
        };
        let mut file = BufWriter::new(open_file(&path, true)?);
        let (mut written, mut length, mut outcome) = (Digester::default(), 0, Ok(()));
        pieces(&mut |piece| {
            written.update(piece);
            length += piece.len() as u64;
            if outcome.is_ok() {
                outcome = file.write_all(piece);
            }
        });
        outcome.and_then(|()| file.flush()).map_err(failed("writing"))?;
        let mut file = file.into_inner().map_err(|error| failed("writing")(error.into_error()))?;
        file.sync_all().map_err(failed("syncing"))?;
        file.rewind().map_err(failed("reading back"))?;
        let mut file = BufReader::new(file.take(length + 1));
        let mut back = Digester::default();
        loop {
            let piece = file.fill_buf().map_err(failed("reading back"))?;
            if piece.is_empty() {
                break;
            }
            back.update(piece);
            let read = piece.len();
            file.consume(read);
        }
        if back.finish() == written.finish() { Ok(()) } else { Err(StoreError::ReadBack { path }) }
    }
}

impl Store for DiskStore {
    fn heads(&mut self) -> Result<Heads, StoreError> {
        let mut found = Heads::default();
        for (slot, name) in HEAD_SLOTS.iter().enumerate() {
            self.set_head(slot, None);
            match self.read(name, STATE_BYTES_MAX as u64)? {
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => match Head::decode(&bytes) {
                    Ok(head) => {
                        self.set_head(slot, Some((head.revision, head.base)));
                        found.candidates.push(Candidate { revision: head.revision, head: bytes, base: head.base });
                    }
                    Err(_) => found.damaged += 1,
                },
                None => found.damaged += 1,
            }
        }
        found.candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.revision));
        Ok(found)
    }

    fn base(&mut self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        for (slot, name) in BASE_SLOTS.iter().enumerate() {
            if self.bases.get(slot).copied().flatten() != Some(*digest) {
                continue;
            }
            // Compared again: rot does not wait for a restart.
            if let Some(bytes) = self.read(name, BASE_BYTES_MAX)?.filter(|bytes| Digest::of(bytes) == *digest) {
                return Ok(Some(bytes));
            }
            self.set_base(slot, None);
        }
        Ok(None)
    }

    /// Base before head: a head never names a base that is not safe. Neither write touches what the
    /// newest good head needs.
    fn save(&mut self, image: &Image) -> Result<(), StoreError> {
        let head = Head::decode(&image.head).map_err(|refusal| StoreError::Head(Box::new(refusal)))?;
        if let Some(digest) = head.base
            && !self.bases.contains(&Some(digest))
        {
            let base = image.base.as_ref().filter(|base| base.digest() == digest).ok_or(StoreError::BaseMissing)?;
            let needed = self.needed();
            let free = self.bases.iter().position(|held| held.is_none() || *held != needed).unwrap_or_default();
            // Doubtful from the first byte on until it was read back.
            self.set_base(free, None);
            let name = BASE_SLOTS.get(free).copied().unwrap_or_default();
            self.write(name, |each| base.visit(each))?;
            self.set_base(free, Some(digest));
        }
        let slot = self.newest().map_or(0, |newest| 1 - newest);
        self.set_head(slot, None);
        let name = HEAD_SLOTS.get(slot).copied().unwrap_or_default();
        self.write(name, |each| each(&image.head))?;
        self.set_head(slot, Some((head.revision, head.base)));
        Ok(())
    }

    fn slot(&mut self, slot: Slot) -> Result<Option<Vec<u8>>, StoreError> {
        let damaged = || StoreError::Damaged { path: self.folder.join(slot.name()) };
        let mut bytes = match self.read(slot.name(), SLOT_BYTES_MAX) {
            Ok(bytes) => bytes.ok_or_else(damaged)?,
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match bytes.split_last_chunk::<SLOT_DIGEST_BYTES>() {
            Some((content, digest)) if Digest::of(content).0 == *digest => {
                bytes.truncate(bytes.len() - SLOT_DIGEST_BYTES);
                Ok(Some(bytes))
            }
            _ => Err(damaged()),
        }
    }

    /// Written beside, read back, then given its name: at every moment one of the two is whole.
    fn put(&mut self, slot: Slot, bytes: &[u8]) -> Result<(), StoreError> {
        let unfinished = format!("{}.new", slot.name());
        self.write(&unfinished, |each| {
            each(bytes);
            each(&Digest::of(bytes).0);
        })?;
        let path = self.folder.join(slot.name());
        std::fs::rename(self.folder.join(unfinished), &path).map_err(|source| StoreError::Io {
            step: "naming",
            path,
            source,
        })?;
        sync_folder(&self.folder)
    }
}

fn make_folder(folder: &Path) -> Result<(), StoreError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).map_err(|source| StoreError::Io { step: "making", path: folder.to_owned(), source })
}

fn open_file(path: &Path, empty: bool) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(empty);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(|source| StoreError::Io { step: "opening", path: path.to_owned(), source })
}

/// Makes the names of new files survive; elsewhere than on Unix folders cannot be synced.
fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    #[cfg(unix)]
    File::open(folder).and_then(|file| file.sync_all()).map_err(|source| StoreError::Io {
        step: "syncing",
        path: folder.to_owned(),
        source,
    })?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use revocast_core::state::BaseImage;
    use revocast_core::{Profile, RealmId, UnixMillis, UnixTime};
    use tempfile::TempDir;

    use super::*;

    fn image(revision: u64, base: &[u8]) -> Image {
        let head = Head {
            realm: RealmId::new("r").unwrap(),
            trust: Digest::default(),
            revision,
            profile: Profile::Exact,
            position: None,
            horizon: UnixTime::default(),
            floor: UnixMillis::default(),
            proof: None,
            overflow: None,
            lost: false,
            keys: vec![revision as u8; 20],
            manifest: Vec::new(),
            base: Some(Digest::of(base)),
            early: Vec::new(),
            recent: Vec::new(),
            cutoffs: Vec::new(),
        };
        Image { revision, head: head.encode().unwrap(), base: Some(BaseImage::from_bytes(base)) }
    }

    /// What a device finds after a restart: the newest head whose base is whole.
    fn after_restart(folder: &Path) -> Option<(u64, Vec<u8>)> {
        let mut store = DiskStore::open(folder).unwrap();
        store.heads().unwrap().candidates.into_iter().find_map(|candidate| {
            let base = store.base(&candidate.base.unwrap()).unwrap()?;
            Some((candidate.revision, base))
        })
    }

    fn slot_with(folder: &Path, slots: [&str; 2], bytes: &[u8]) -> PathBuf {
        slots.iter().map(|name| folder.join(name)).find(|path| fs::read(path).unwrap() == bytes).unwrap()
    }

    #[test]
    fn what_was_saved_is_found_again() {
        let folder = TempDir::new().unwrap();
        assert_eq!(after_restart(folder.path()), None);
        for revision in 1..=5 {
            let base = [revision as u8; 40];
            DiskStore::open(folder.path()).unwrap().save(&image(revision, &base)).unwrap();
            assert_eq!(after_restart(folder.path()), Some((revision, base.to_vec())));
        }
        // A base that is already there need not be given again.
        let again = Image { base: None, ..image(6, &[5; 40]) };
        DiskStore::open(folder.path()).unwrap().save(&again).unwrap();
        assert_eq!(after_restart(folder.path()), Some((6, vec![5; 40])));
    }

    #[test]
    fn an_image_without_its_base_is_refused_and_leaves_what_was_there() {
        let folder = TempDir::new().unwrap();
        let mut store = DiskStore::open(folder.path()).unwrap();
        store.save(&image(1, b"one")).unwrap();
        let missing = Image { base: None, ..image(2, b"two") };
        assert!(matches!(store.save(&missing), Err(StoreError::BaseMissing)));
        let wrong = Image { base: image(1, b"one").base, ..image(2, b"two") };
        assert!(matches!(store.save(&wrong), Err(StoreError::BaseMissing)));
        drop(store);
        assert_eq!(after_restart(folder.path()), Some((1, b"one".to_vec())));
    }

    /// The power goes while the second state is being written: at every byte, with the old bytes of
    /// the slot behind it or cut off.
    #[test]
    fn a_torn_write_leaves_the_old_state_or_the_new_one() {
        let old = image(2, b"the base of the old state");
        let new = image(3, b"another base, of the new state");
        let folder = TempDir::new().unwrap();
        let mut store = DiskStore::open(folder.path()).unwrap();
        store.save(&image(1, b"a base before both")).unwrap();
        store.save(&old).unwrap();
        let before: Vec<(PathBuf, Vec<u8>)> = HEAD_SLOTS
            .iter()
            .chain(&BASE_SLOTS)
            .map(|name| folder.path().join(name))
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        store.save(&new).unwrap();
        drop(store);
        let base = slot_with(folder.path(), BASE_SLOTS, &new.base.as_ref().unwrap().to_bytes());
        let head = slot_with(folder.path(), HEAD_SLOTS, &new.head);
        let both = [(base, new.base.as_ref().unwrap().to_bytes()), (head, new.head.clone())];

        for (torn, (path, bytes)) in both.iter().enumerate() {
            for cut in 0..=bytes.len() {
                for keeps_tail in [false, true] {
                    for (path, bytes) in &before {
                        fs::write(path, bytes).unwrap();
                    }
                    // What was written before the torn write is whole.
                    for (path, bytes) in both.iter().take(torn) {
                        fs::write(path, bytes).unwrap();
                    }
                    let mut written = bytes[..cut].to_vec();
                    if keeps_tail {
                        let earlier = fs::read(path).unwrap();
                        written.extend(earlier.iter().skip(cut));
                    }
                    fs::write(path, &written).unwrap();
                    let found = after_restart(folder.path()).expect("never empty");
                    let new_is_whole = torn == 1 && written == *bytes;
                    let expected = if new_is_whole { &new } else { &old };
                    assert_eq!(found, (expected.revision, expected.base.as_ref().unwrap().to_bytes()));
                    // And the device can go on from there.
                    DiskStore::open(folder.path()).unwrap().save(&image(9, b"later")).unwrap();
                    assert_eq!(after_restart(folder.path()), Some((9, b"later".to_vec())));
                }
            }
        }
    }

    #[test]
    fn no_flipped_bit_is_ever_loaded() {
        let folder = TempDir::new().unwrap();
        let only = image(1, &[0xa5; 100]);
        DiskStore::open(folder.path()).unwrap().save(&only).unwrap();
        let head = slot_with(folder.path(), HEAD_SLOTS, &only.head);
        let base = slot_with(folder.path(), BASE_SLOTS, &only.base.as_ref().unwrap().to_bytes());
        for (path, bytes) in [(head, only.head), (base, only.base.unwrap().to_bytes())] {
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                fs::write(&path, &flipped).unwrap();
                assert_eq!(after_restart(folder.path()), None, "bit {bit} of {}", path.display());
            }
            fs::write(&path, &bytes).unwrap();
        }
        assert!(after_restart(folder.path()).is_some());
    }

    #[test]
    fn slots_keep_what_was_put_last_and_nothing_damaged() {
        let folder = TempDir::new().unwrap();
        let mut store = DiskStore::open(folder.path()).unwrap();
        assert_eq!(store.slot(Slot::Token).unwrap(), None);
        for text in [&b"first"[..], b"", b"second"] {
            store.put(Slot::Token, text).unwrap();
            assert_eq!(store.slot(Slot::Token).unwrap().unwrap(), text);
        }
        assert_eq!(store.slot(Slot::IssuerKeys).unwrap(), None);
        // A write that was torn before it got its name changes nothing.
        fs::write(folder.path().join("token.new"), b"torn").unwrap();
        assert_eq!(store.slot(Slot::Token).unwrap().unwrap(), b"second");
        let path = folder.path().join("token");
        let whole = fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, &bytes).unwrap();
            assert!(matches!(store.slot(Slot::Token), Err(StoreError::Damaged { .. })), "bit {bit}");
        }
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(matches!(store.slot(Slot::Token), Err(StoreError::Damaged { .. })), "{cut} bytes");
        }
        store.put(Slot::Token, b"third").unwrap();
        assert_eq!(store.slot(Slot::Token).unwrap().unwrap(), b"third");
    }

    #[test]
    fn damage_is_counted() {
        let folder = TempDir::new().unwrap();
        DiskStore::open(folder.path()).unwrap().save(&image(1, b"base")).unwrap();
        fs::write(folder.path().join("head-b"), b"garbage").unwrap();
        let heads = DiskStore::open(folder.path()).unwrap().heads().unwrap();
        assert_eq!((heads.candidates.len(), heads.damaged), (1, 1));
    }

    #[test]
    fn an_oversize_slot_is_damage_and_is_not_read() {
        let folder = TempDir::new().unwrap();
        DiskStore::open(folder.path()).unwrap();
        let file = OpenOptions::new().write(true).open(folder.path().join("head-a")).unwrap();
        file.set_len(STATE_BYTES_MAX as u64 + 1).unwrap();
        let heads = DiskStore::open(folder.path()).unwrap().heads().unwrap();
        assert_eq!((heads.candidates.len(), heads.damaged), (0, 1));
    }

    #[test]
    fn a_folder_in_use_is_refused() {
        let folder = TempDir::new().unwrap();
        let first = DiskStore::open(folder.path()).unwrap();
        assert!(matches!(DiskStore::open(folder.path()), Err(StoreError::Locked { .. })));
        drop(first);
        assert!(DiskStore::open(folder.path()).is_ok());
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read() {
        use std::os::unix::fs::PermissionsExt as _;
        let parent = TempDir::new().unwrap();
        let folder = parent.path().join("state");
        DiskStore::open(&folder).unwrap().save(&image(1, b"base")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        for name in ["head-a", "head-b", "base-a", "base-b", "lock"] {
            assert_eq!(mode(&folder.join(name)), 0o600, "{name}");
        }
    }

    /// The disk is full: a slot cannot be written. What was there stays, and the next save succeeds.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_and_loses_nothing() {
        let folder = TempDir::new().unwrap();
        let mut store = DiskStore::open(folder.path()).unwrap();
        store.save(&image(1, b"base")).unwrap();
        // /dev/full takes no byte.
        let slot = folder.path().join("head-b");
        fs::remove_file(&slot).unwrap();
        std::os::unix::fs::symlink("/dev/full", &slot).unwrap();
        let error = store.save(&image(2, b"base")).unwrap_err();
        assert!(matches!(error, StoreError::Io { step: "writing", .. }), "{error}");
        fs::remove_file(&slot).unwrap();
        fs::write(&slot, b"").unwrap();
        store.save(&image(3, b"base")).unwrap();
        drop(store);
        assert_eq!(after_restart(folder.path()), Some((3, b"base".to_vec())));
    }
}
