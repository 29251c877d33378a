//! `ledger`: looks at a ledger from outside, moves it, tidies it. No server runs for this.

mod lines;

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, IsTerminal as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};
use revocast_core::{Kind, PublicKey, RealmId, Sealed, wire};
use revocast_server::config::LedgerChoice;
use revocast_server::ledger::{Inspection, Ledger, LedgerError, Object, OpenError, Piece, Source};
use serde_json::{Value, json};

use crate::args::{LedgerCommand, LedgerPlace};
use crate::output::{Failure, Output, read_file};
use crate::runtime;

use self::lines::{Reader, Writer};

/// Pieces that wait to be written or looked at.
const AHEAD: usize = 4;

/// Bytes read and written at a time.
const BUFFER_BYTES: usize = 1 << 20;

pub fn run(output: Output, command: LedgerCommand) -> Result<ExitCode, Failure> {
    output.start_logging()?;
    runtime()?.block_on(async {
        match command {
            LedgerCommand::Verify { place } => verify(output, existing(&place).await?.as_ref()).await,
            LedgerCommand::Export { file, place } => export(output, existing(&place).await?.as_ref(), &file).await,
            LedgerCommand::Import { file, place } => import(output, &place, &file).await,
            LedgerCommand::Compact { place } => compact(output, existing(&place).await?.as_ref()).await,
        }
    })
}

fn choice(place: &LedgerPlace) -> Result<LedgerChoice, Failure> {
    let Some(url) = &place.ledger else { return Ok(LedgerChoice::Embedded) };
    let password =
        place.ledger_password_file.as_deref().map(|path| read_file(path, "the password file")).transpose()?;
    // Editors end a file with a line break; a password does not.
    let password = password.map(|bytes| String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned());
    Ok(LedgerChoice::in_database(url.clone(), password, place.ledger_ca.clone()))
}

async fn open(place: &LedgerPlace) -> Result<Arc<dyn Ledger>, Failure> {
    let choice = choice(place)?;
    choice.open(place.data.as_deref().unwrap_or(Path::new("."))).await.map_err(|error| match &error {
        OpenError::InUse { .. } => Failure::plain("ledger-in-use", error.to_string())
            .help("stop that server first: one process at a time has an embedded ledger"),
        OpenError::Damaged { .. } => Failure::plain("ledger-damaged", error.to_string()),
        OpenError::Url(_) => Failure::new("bad-ledger", "--ledger cannot be used", &error).usage(),
        _ => Failure::new("ledger-not-opened", "the ledger cannot be opened", &error),
    })
}

/// Opens a ledger that is there: a mistyped folder must not become a new one.
async fn existing(place: &LedgerPlace) -> Result<Arc<dyn Ledger>, Failure> {
    if let Some(data) = &place.data
        && !data.join("ledger.db").exists()
    {
        return Err(Failure::plain("no-ledger", format!("there is no ledger in {}", data.display())).usage());
    }
    open(place).await
}

fn failure(error: &LedgerError) -> Failure {
    match error {
        LedgerError::Damaged { what } => Failure::plain("ledger-damaged", format!("the ledger is damaged: {what}")),
        LedgerError::NotEmpty { .. } => Failure::plain("ledger-not-empty", error.to_string())
            .help("a ledger is imported into an empty folder or database, so that nothing can be lost"),
        LedgerError::Unreadable(_) => Failure::new("bad-export", "nothing was imported", error),
        other => Failure::new("ledger-failed", "the ledger did not do it", other),
    }
}

/// Everything that the ledger holds goes through `take`, and is looked at.
async fn look(
    output: Output,
    ledger: &dyn Ledger,
    mut take: impl FnMut(Piece) -> Result<(), Failure> + Send + 'static,
) -> Result<Inspection, Failure> {
    let bar = bar(output);
    let seen = Arc::new(Mutex::new((Inspection::default(), None)));
    let (looked, shown) = (Arc::clone(&seen), bar.clone());
    let sink = Box::new(move |piece: Piece| {
        let mut seen = looked.lock().unwrap_or_else(PoisonError::into_inner);
        seen.0.take(&piece);
        advance(&shown, &piece);
        match take(piece) {
            Ok(()) => true,
            Err(failure) => {
                seen.1 = Some(failure);
                false
            }
        }
    });
    let dumped = ledger.dump(sink).await;
    bar.finish_and_clear();
    let (mut inspection, failed) = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    if let Some(failure) = failed {
        return Err(failure);
    }
    match dumped {
        Ok(()) => {
            inspection.finish();
        }
        Err(LedgerError::Damaged { what }) => inspection.found(format!("{what}; what comes after it was not read")),
        Err(error) => return Err(failure(&error)),
    }
    Ok(inspection)
}

async fn verify(output: Output, ledger: &dyn Ledger) -> Result<ExitCode, Failure> {
    let objects = Arc::new(Mutex::new(Objects::default()));
    let checking = Arc::clone(&objects);
    let seen = look(output, ledger, move |piece| {
        checking.lock().unwrap_or_else(PoisonError::into_inner).take(piece);
        Ok(())
    });
    let mut seen = seen.await?;
    let mut objects = std::mem::take(&mut *objects.lock().unwrap_or_else(PoisonError::into_inner));
    objects.end_realm();
    objects.findings.into_iter().for_each(|finding| seen.found(finding));
    report(output, "the ledger is whole", &seen)
}

/// Says what was found; exit code 1 if something is wrong.
fn report(output: Output, good: &str, seen: &Inspection) -> Result<ExitCode, Failure> {
    let value = value(seen);
    if seen.wrong == 0 {
        output.result(format!("{good}\n{}", counts(seen)), &value);
        return Ok(ExitCode::SUCCESS);
    }
    output.result(counts(seen), &value);
    let mut detail = format!("the ledger is damaged: {} things are wrong", seen.wrong);
    for finding in &seen.findings {
        detail.push_str("\n  ");
        detail.push_str(finding);
    }
    Err(Failure::plain("ledger-damaged", detail).help(
        "put a backup back, or import an export into an empty folder; serve --resume then goes on beyond what was published",
    ))
}

fn counts(seen: &Inspection) -> String {
    format!(
        "{} realms, {} entries, {} registered tokens, {} devices, {} tokens and {} refresh tokens of our issuer, \
         {} published objects",
        seen.realms, seen.entries, seen.issued, seen.devices, seen.tokens, seen.refreshes, seen.objects
    )
}

fn value(seen: &Inspection) -> Value {
    json!({
        "realms": seen.realms, "entries": seen.entries, "issued": seen.issued, "devices": seen.devices,
        "tokens": seen.tokens, "refreshes": seen.refreshes, "objects": seen.objects,
        "wrong": seen.wrong, "findings": seen.findings,
    })
}

async fn export(output: Output, ledger: &dyn Ledger, path: &Path) -> Result<ExitCode, Failure> {
    let unwritable = {
        let path = path.to_owned();
        move |error: std::io::Error| {
            Failure::new("unwritable-file", format!("{} cannot be written", path.display()), &error)
        }
    };
    // Under its name only once it is whole.
    let draft = path.with_added_extension("part");
    let file = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&draft)
        .map_err(|error| unwritable(error).usage())?;
    if path.exists() {
        let _ = fs::remove_file(&draft);
        return Err(Failure::plain("file-exists", format!("{} is there already", path.display())).usage());
    }
    let write = async {
        let mut writer = Writer::new(BufWriter::with_capacity(BUFFER_BYTES, file)).map_err(&unwritable)?;
        // Written on a thread of its own: reading goes on meanwhile.
        let (pieces, coming) = sync_channel::<Piece>(AHEAD);
        let writing = tokio::task::spawn_blocking(move || {
            for piece in coming {
                writer.piece(piece)?;
            }
            Ok::<_, std::io::Error>(writer)
        });
        // Nobody takes pieces any more: why is told by whoever did.
        let seen = look(output, ledger, move |piece| {
            pieces.send(piece).map_err(|_| Failure::plain("unwritable-file", "the export stopped"))
        });
        let seen = seen.await;
        let written = writing.await.map_err(|error| unwritable(std::io::Error::other(error)))?;
        let writer = written.map_err(&unwritable)?;
        let seen = seen?;
        if seen.wrong > 0 {
            return Err(report(output, "", &seen).err().unwrap_or_else(|| Failure::plain("ledger-damaged", "damaged")));
        }
        let buffer = writer.finish(&seen).map_err(&unwritable)?;
        let file = buffer.into_inner().map_err(|error| unwritable(error.into_error()))?;
        file.sync_all().and_then(|()| fs::rename(&draft, path)).map_err(&unwritable)?;
        Ok(seen)
    };
    let seen = write.await.inspect_err(|_| {
        let _ = fs::remove_file(&draft);
    })?;
    let words = format!(
        "exported to {}\n{}\nit holds the fingerprint keys of the realms and the names of tokens: keep it as you keep keys",
        path.display(),
        counts(&seen)
    );
    output.result(words, &value(&seen));
    Ok(ExitCode::SUCCESS)
}

async fn import(output: Output, place: &LedgerPlace, path: &Path) -> Result<ExitCode, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::new("unreadable-file", format!("{} cannot be read", path.display()), &error).usage()
    };
    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.is_dir() {
        return Err(Failure::plain("unreadable-file", format!("{} is a folder", path.display())).usage());
    }
    let ledger = open(place).await?;
    let bar = bar(output);
    let shown = bar.clone();
    let reader = Reader::new(BufReader::with_capacity(BUFFER_BYTES, file));
    let source: Source = Box::new(reader.inspect(move |piece| {
        if let Ok(piece) = piece {
            advance(&shown, piece);
        }
    }));
    let restored = ledger.restore(source).await;
    bar.finish_and_clear();
    restored.map_err(|error| match &error {
        LedgerError::Damaged { what } => Failure::plain("bad-export", format!("nothing was imported: {what}")),
        other => failure(other),
    })?;
    // What counts is what can be read again.
    let seen = look(output, ledger.as_ref(), |_| Ok(())).await?;
    report(output, &format!("imported {}", path.display()), &seen)
}

async fn compact(output: Output, ledger: &dyn Ledger) -> Result<ExitCode, Failure> {
    let done = ledger.compact().await.map_err(|error| failure(&error))?;
    let told = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), |bytes| format!("{bytes} bytes"));
    let words = format!("before {}, after {}", told(done.before), told(done.after));
    output.result(words, &json!({ "before": done.before, "after": done.after }));
    Ok(ExitCode::SUCCESS)
}

/// For people who watch: hidden where nobody does, and where a program reads.
fn bar(output: Output) -> ProgressBar {
    if output.is_json() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template("{wide_bar} {human_pos}/{human_len} {eta}") {
        Ok(style) => bar.with_style(style),
        // The template stands above; a plain bar would do as well.
        Err(_) => bar,
    }
}

fn advance(bar: &ProgressBar, piece: &Piece) {
    match piece {
        Piece::Realm(record) => {
            let issued = record.devices + record.tokens + record.refreshes;
            bar.inc_length(record.stored + record.coverage.registered + issued);
        }
        Piece::Entries(rows) => bar.inc(rows.len() as u64),
        Piece::Issued(rows) => bar.inc(rows.len() as u64),
        Piece::Devices(rows) => bar.inc(rows.len() as u64),
        Piece::Tokens(rows) => bar.inc(rows.len() as u64),
        Piece::Refreshes(rows) => bar.inc(rows.len() as u64),
        Piece::Objects(_) => {}
    }
}

/// Whether what was published can have been published: sealed, of its realm, signed by a key that the realm names.
#[derive(Default)]
struct Objects {
    realm: Option<RealmId>,
    publishers: Vec<PublicKey>,
    /// Those that are signed by a publisher: which keys those are is known only once all objects were seen.
    signed: Vec<Object>,
    findings: Vec<String>,
}

impl Objects {
    fn take(&mut self, piece: Piece) {
        match piece {
            Piece::Realm(record) => {
                self.end_realm();
                self.realm = Some(record.realm.id);
            }
            Piece::Objects(objects) => objects.into_iter().for_each(|object| self.object(object)),
            Piece::Entries(_) | Piece::Issued(_) | Piece::Devices(_) | Piece::Tokens(_) | Piece::Refreshes(_) => {}
        }
    }

    fn object(&mut self, object: Object) {
        let Some(realm) = self.realm else { return };
        let name = format!("object {} of realm {realm}", object.address);
        let sealed = match Sealed::parse(&object.bytes) {
            Ok(sealed) => sealed,
            Err(refusal) => return self.findings.push(format!("{name} is not sealed: {refusal}")),
        };
        if sealed.realm() != realm {
            self.findings.push(format!("{name} is sealed for realm {}", sealed.realm()));
        }
        match sealed.kind() {
            Kind::Keys => match wire::decode_keys(sealed.unverified_body()) {
                Ok(keys) if sealed.by_threshold(&keys.roots, keys.threshold).is_ok() => {
                    self.publishers.extend(keys.publishers.iter().map(|publisher| publisher.key));
                }
                Ok(_) => self.findings.push(format!("{name} is not signed by the root keys that it names")),
                Err(error) => self.findings.push(format!("{name} does not decode: {error}")),
            },
            Kind::Manifest | Kind::Index | Kind::Delta | Kind::IssuerKeys => self.signed.push(object),
            // Unsigned: an index names them by digest.
            Kind::Chunk => {}
            Kind::Report | Kind::Ask | Kind::Answer | Kind::Renew | Kind::Delivery => {
                self.findings.push(format!("{name} is nothing that is published"));
            }
        }
    }

    fn end_realm(&mut self) {
        let publishers = std::mem::take(&mut self.publishers);
        for object in std::mem::take(&mut self.signed) {
            let signed = Sealed::parse(&object.bytes).is_ok_and(|sealed| sealed.by_threshold(&publishers, 1).is_ok());
            if !signed {
                let realm = self.realm.map(|realm| realm.to_string()).unwrap_or_default();
                self.findings.push(format!(
                    "object {} of realm {realm} is not signed by a publisher that its keys name",
                    object.address
                ));
            }
        }
    }
}
