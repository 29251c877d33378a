//! The form of an export: one JSON object a line, in the order of a dump; the last line counts and digests all before
//! it, so that a file that was cut, or touched, is known.
//!
//! The same ledger gives the same bytes, wherever it is kept.

use std::error::Error;
use std::io::{self, BufRead, Read as _, Write};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use revocast_core::limits::{ACTOR_BYTES_MAX, REASON_BYTES_MAX, SCOPE_BYTES_MAX, SEALED_BYTES_MAX};
use revocast_core::seal::Digester;
use revocast_core::{
    DeviceId, EnvelopePublicKey, Fingerprint, FingerprintFunction, Fingerprinter, Issuer, Jti, PublicKey, RealmId,
    RealmKey, Sequence, Term, UnixTime, Width,
};
use revocast_server::ledger::{
    AUDIENCES_MAX, Cause, Coverage, Device, Enrolled, Entry, Inspection, IssuedToken, Object, Piece, Realm,
    RealmRecord, RefreshState, RefreshToken, Scope, Statement,
};
use serde::{Deserialize, Serialize};

const FORMAT: &str = "revocast-ledger";
const VERSION: u32 = 1;

/// Bytes of a line: the largest object in base64, and its address.
const LINE_BYTES_MAX: usize = SEALED_BYTES_MAX / 3 * 4 + 4 * 1024;

/// Rows put into one piece, so that databases are asked seldom.
const PIECE_ROWS: usize = 1_000;

/// Objects put into one piece: each may have a quarter of a megabyte.
const PIECE_OBJECTS: usize = 8;

#[derive(Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case", deny_unknown_fields)]
enum Line {
    Export(Export),
    Realm(RealmLine),
    Revoke(Revoke),
    Reinstate(Revoke),
    Cutoff(Cutoff),
    Lift(Lift),
    Resume(Resume),
    Issued(Issued),
    Device(DeviceLine),
    Token(TokenLine),
    Refresh(RefreshLine),
    Object(ObjectLine),
    End(End),
}

#[derive(Serialize, Deserialize)]
struct Export {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct RealmLine {
    realm: String,
    issuer: String,
    function: u8,
    key: String,
    width: u8,
    leeway: u64,
    max_token_lifetime: u64,
    created: u64,
    term: u32,
    head: u64,
    entries: u64,
    cutoffs: u64,
    registered: u64,
    covered_until: Option<u64>,
    // Not in exports from before there were any.
    #[serde(default, skip_serializing_if = "is_none")]
    devices: u64,
    #[serde(default, skip_serializing_if = "is_none")]
    tokens: u64,
    #[serde(default, skip_serializing_if = "is_none")]
    refreshes: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As serde calls it.
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// What every entry has.
#[derive(Serialize, Deserialize)]
struct Record {
    sequence: u64,
    at: u64,
    actor: String,
    reason: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Revoke {
    #[serde(flatten)]
    record: Record,
    jti: String,
    exp: u64,
}

#[derive(Serialize, Deserialize)]
struct Cutoff {
    #[serde(flatten)]
    record: Record,
    scope: String,
    of: String,
    not_before: u64,
}

#[derive(Serialize, Deserialize)]
struct Lift {
    #[serde(flatten)]
    record: Record,
    scope: String,
    of: String,
}

#[derive(Serialize, Deserialize)]
struct Resume {
    #[serde(flatten)]
    record: Record,
    term: u32,
}

#[derive(Serialize, Deserialize)]
struct Issued {
    fingerprint: String,
    name: String,
    iat: u64,
    exp: u64,
    sub: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct DeviceLine {
    id: String,
    signing: String,
    sealing: String,
    subject: String,
    audience: Vec<String>,
    enrolled_at: u64,
    counter: u64,
    holds: Option<String>,
    held_until: Option<u64>,
    barred: bool,
}

#[derive(Serialize, Deserialize)]
struct TokenLine {
    jti: String,
    iat: u64,
    exp: u64,
    sub: Option<String>,
    kid: Option<String>,
    client: Option<String>,
    device: Option<String>,
    parent: Option<String>,
    family: String,
    kept_until: u64,
}

#[derive(Serialize, Deserialize)]
struct RefreshLine {
    sha256: String,
    exp: u64,
    state: String,
    jti: String,
    iat: u64,
    sub: Option<String>,
    kid: Option<String>,
    client: Option<String>,
    device: Option<String>,
    family: String,
}

#[derive(Serialize, Deserialize)]
struct ObjectLine {
    address: String,
    bytes: String,
}

#[derive(Serialize, Deserialize)]
struct End {
    realms: u64,
    entries: u64,
    issued: u64,
    #[serde(default, skip_serializing_if = "is_none")]
    devices: u64,
    #[serde(default, skip_serializing_if = "is_none")]
    tokens: u64,
    #[serde(default, skip_serializing_if = "is_none")]
    refreshes: u64,
    objects: u64,
    sha256: String,
}

/// Writes an export.
pub struct Writer<W> {
    to: W,
    digest: Digester,
}

impl<W: Write> Writer<W> {
    pub fn new(to: W) -> io::Result<Self> {
        let mut writer = Self { to, digest: Digester::default() };
        writer.line(&Line::Export(Export { format: FORMAT.into(), version: VERSION }))?;
        Ok(writer)
    }

    pub fn piece(&mut self, piece: Piece) -> io::Result<()> {
        match piece {
            Piece::Realm(record) => self.line(&Line::Realm(realm_line(&record))),
            Piece::Entries(entries) => entries.into_iter().try_for_each(|entry| self.line(&entry_line(entry))),
            Piece::Issued(issued) => issued.into_iter().try_for_each(|issued| {
                let Enrolled { fingerprint, name, iat, exp, sub } = issued;
                let (fingerprint, name) = (format!("{:016x}", fingerprint.bits()), format!("{name:016x}"));
                self.line(&Line::Issued(Issued { fingerprint, name, iat: iat.secs(), exp: exp.secs(), sub }))
            }),
            Piece::Devices(devices) => {
                devices.into_iter().try_for_each(|device| self.line(&Line::Device(device_line(device))))
            }
            Piece::Tokens(tokens) => {
                tokens.into_iter().try_for_each(|token| self.line(&Line::Token(token_line(token))))
            }
            Piece::Refreshes(refreshes) => {
                refreshes.into_iter().try_for_each(|refresh| self.line(&Line::Refresh(refresh_line(refresh))))
            }
            Piece::Objects(objects) => objects.into_iter().try_for_each(|Object { address, bytes }| {
                self.line(&Line::Object(ObjectLine { address, bytes: STANDARD.encode(bytes) }))
            }),
        }
    }

    /// Says that this is all.
    pub fn finish(mut self, seen: &Inspection) -> io::Result<W> {
        let sha256 = std::mem::take(&mut self.digest).finish().to_string();
        let Inspection { realms, entries, issued, devices, tokens, refreshes, objects, .. } = *seen;
        self.line(&Line::End(End { realms, entries, issued, devices, tokens, refreshes, objects, sha256 }))?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn line(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.digest.update(&text);
        self.to.write_all(&text)
    }
}

fn realm_line(record: &RealmRecord) -> RealmLine {
    let RealmRecord { realm, term, head, stored, cutoffs, devices, tokens, refreshes, coverage } = record;
    RealmLine {
        realm: realm.id.as_str().to_owned(),
        issuer: realm.issuer.clone(),
        function: realm.fingerprinter.function() as u8,
        key: STANDARD.encode(realm.fingerprinter.key().0),
        width: realm.fingerprinter.width().bits() as u8,
        leeway: realm.leeway.as_secs(),
        max_token_lifetime: realm.max_token_lifetime.as_secs(),
        created: realm.created.secs(),
        term: term.0,
        head: head.0,
        entries: *stored,
        cutoffs: *cutoffs,
        registered: coverage.registered,
        covered_until: coverage.covered_until.map(UnixTime::secs),
        devices: *devices,
        tokens: *tokens,
        refreshes: *refreshes,
    }
}

fn device_line(device: Device) -> DeviceLine {
    DeviceLine {
        id: device.id.to_string(),
        signing: STANDARD.encode(device.signing.0),
        sealing: STANDARD.encode(device.sealing.as_bytes()),
        subject: device.subject,
        audience: device.audience,
        enrolled_at: device.enrolled_at.secs(),
        counter: device.counter,
        holds: device.holds,
        held_until: device.held_until.map(UnixTime::secs),
        barred: device.barred,
    }
}

fn token_line(token: IssuedToken) -> TokenLine {
    let IssuedToken { jti, iat, exp, sub, kid, client, device, parent, family, kept_until } = token;
    let (iat, exp, kept_until) = (iat.secs(), exp.secs(), kept_until.secs());
    let device = device.map(|device| device.to_string());
    TokenLine { jti, iat, exp, sub, kid, client, device, parent, family, kept_until }
}

fn refresh_line(refresh: RefreshToken) -> RefreshLine {
    let RefreshToken { hash, exp, state, jti, iat, sub, kid, client, device, family } = refresh;
    let state = match state {
        RefreshState::Live => "live",
        RefreshState::Spent => "spent",
        RefreshState::Ended => "ended",
    };
    let (sha256, device) = (STANDARD.encode(hash), device.map(|device| device.to_string()));
    RefreshLine { sha256, exp: exp.secs(), state: state.into(), jti, iat: iat.secs(), sub, kid, client, device, family }
}

fn entry_line(entry: Entry) -> Line {
    let Entry { sequence, at, statement, reason, actor } = entry;
    let record = Record { sequence: sequence.0, at: at.secs(), actor, reason };
    let named = |scope: &Scope| {
        let kind = match scope {
            Scope::Realm => "realm",
            Scope::Sub(_) => "sub",
            Scope::Kid(_) => "kid",
            Scope::Client(_) => "client",
        };
        (kind.to_owned(), scope.text().to_owned())
    };
    match statement {
        Statement::Revoke { jti, exp } => Line::Revoke(Revoke { record, jti, exp: exp.secs() }),
        Statement::Reinstate { jti, exp } => Line::Reinstate(Revoke { record, jti, exp: exp.secs() }),
        Statement::Cutoff { scope, not_before } => {
            let (scope, of) = named(&scope);
            Line::Cutoff(Cutoff { record, scope, of, not_before: not_before.secs() })
        }
        Statement::Lift { scope } => {
            let (scope, of) = named(&scope);
            Line::Lift(Lift { record, scope, of })
        }
        Statement::Resume { term } => Line::Resume(Resume { record, term: term.0 }),
    }
}

/// Reads an export, and gives what it says piece by piece.
pub struct Reader<R> {
    from: R,
    digest: Digester,
    line: u64,
    /// What the last line must say.
    seen: [u64; 7],
    width: Width,
    /// A line that did not fit into the piece before it.
    next: Option<Row>,
    is_over: bool,
}

/// One line, as a ledger keeps it.
enum Row {
    Realm(RealmRecord),
    Entry(Entry),
    Issued(Enrolled),
    Device(Device),
    Token(IssuedToken),
    Refresh(RefreshToken),
    Object(Object),
}

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

impl<R: BufRead> Reader<R> {
    pub fn new(from: R) -> Self {
        Self { from, digest: Digester::default(), line: 0, seen: [0; 7], width: Width::W48, next: None, is_over: false }
    }

    /// The next row; `None` after the last line, which was as it must be.
    fn row(&mut self) -> Outcome<Option<Row>> {
        if let Some(row) = self.next.take() {
            return Ok(Some(row));
        }
        if self.line == 0 {
            match self.read()? {
                (Line::Export(Export { format, version: VERSION }), _) if format == FORMAT => {}
                (Line::Export(Export { format, version }), _) if format == FORMAT => {
                    return Err(format!("it has version {version}; this release knows version {VERSION}").into());
                }
                _ => return Err("it is no export of a ledger".into()),
            }
        }
        let (line, before) = self.read()?;
        let row = match line {
            Line::End(end) => {
                let End { realms, entries, issued, devices, tokens, refreshes, objects, sha256 } = end;
                if self.seen != [realms, entries, issued, devices, tokens, refreshes, objects] {
                    return Err("it does not hold as much as its last line says".into());
                }
                if before.finish().to_string() != sha256 {
                    return Err("it was changed: what stands there has another SHA-256 than its last line says".into());
                }
                if !self.from.fill_buf()?.is_empty() {
                    return Err("something stands after its last line".into());
                }
                return Ok(None);
            }
            Line::Export(_) => return Err("it begins twice".into()),
            Line::Realm(line) => {
                let record = realm_record(line)?;
                self.width = record.realm.fingerprinter.width();
                Row::Realm(record)
            }
            Line::Issued(line) => {
                let bits = u64::from_str_radix(&line.fingerprint, 16)?;
                let fingerprint = Fingerprint::from_bits(bits, self.width).ok_or("the fingerprint is too long")?;
                let name = u64::from_str_radix(&line.name, 16)?;
                let sub = line.sub.map(|sub| within("sub", sub, SCOPE_BYTES_MAX)).transpose()?;
                Row::Issued(Enrolled { fingerprint, name, iat: time(line.iat)?, exp: time(line.exp)?, sub })
            }
            Line::Device(line) => Row::Device(device(line)?),
            Line::Token(line) => Row::Token(issued_token(line)?),
            Line::Refresh(line) => Row::Refresh(refresh_token(line)?),
            Line::Object(line) => Row::Object(Object { address: line.address, bytes: STANDARD.decode(line.bytes)? }),
            Line::Revoke(Revoke { record, jti, exp }) => {
                Row::Entry(entry(record, Statement::Revoke { jti: token(jti)?, exp: time(exp)? })?)
            }
            Line::Reinstate(Revoke { record, jti, exp }) => {
                Row::Entry(entry(record, Statement::Reinstate { jti: token(jti)?, exp: time(exp)? })?)
            }
            Line::Cutoff(Cutoff { record, scope, of, not_before }) => {
                let (scope, not_before) = (scope_of(&scope, of)?, time(not_before)?);
                Row::Entry(entry(record, Statement::Cutoff { scope, not_before })?)
            }
            Line::Lift(Lift { record, scope, of }) => {
                Row::Entry(entry(record, Statement::Lift { scope: scope_of(&scope, of)? })?)
            }
            Line::Resume(Resume { record, term }) => Row::Entry(entry(record, Statement::Resume { term: Term(term) })?),
        };
        let [realms, entries, issued, devices, tokens, refreshes, objects] = &mut self.seen;
        let counter = match &row {
            Row::Realm(_) => realms,
            Row::Entry(_) => entries,
            Row::Issued(_) => issued,
            Row::Device(_) => devices,
            Row::Token(_) => tokens,
            Row::Refresh(_) => refreshes,
            Row::Object(_) => objects,
        };
        *counter += 1;
        Ok(Some(row))
    }

    /// The next line, and the digest of all before it.
    fn read(&mut self) -> Outcome<(Line, Digester)> {
        let mut text = Vec::new();
        self.line += 1;
        self.from.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut text)?;
        if text.len() > LINE_BYTES_MAX {
            return Err(format!("the line is longer than {LINE_BYTES_MAX} bytes").into());
        }
        if text.pop() != Some(b'\n') {
            return Err("the file ends here, and should not: it was cut".into());
        }
        let before = self.digest.clone();
        self.digest.update(&text);
        self.digest.update(b"\n");
        Ok((serde_json::from_slice(&text)?, before))
    }

    /// As many rows of one kind as a piece takes.
    fn piece(&mut self) -> Outcome<Option<Piece>> {
        let mut piece = match self.row()? {
            None => return Ok(None),
            Some(Row::Realm(record)) => return Ok(Some(Piece::Realm(record))),
            Some(Row::Entry(entry)) => Piece::Entries(vec![entry]),
            Some(Row::Issued(issued)) => Piece::Issued(vec![issued]),
            Some(Row::Device(device)) => Piece::Devices(vec![device]),
            Some(Row::Token(token)) => Piece::Tokens(vec![token]),
            Some(Row::Refresh(refresh)) => Piece::Refreshes(vec![refresh]),
            Some(Row::Object(object)) => Piece::Objects(vec![object]),
        };
        loop {
            match (&mut piece, self.row()?) {
                (Piece::Entries(entries), Some(Row::Entry(entry))) if entries.len() < PIECE_ROWS => entries.push(entry),
                (Piece::Issued(held), Some(Row::Issued(issued))) if held.len() < PIECE_ROWS => held.push(issued),
                (Piece::Devices(held), Some(Row::Device(device))) if held.len() < PIECE_ROWS => held.push(device),
                (Piece::Tokens(held), Some(Row::Token(token))) if held.len() < PIECE_ROWS => held.push(token),
                (Piece::Refreshes(held), Some(Row::Refresh(more))) if held.len() < PIECE_ROWS => held.push(more),
                (Piece::Objects(held), Some(Row::Object(object))) if held.len() < PIECE_OBJECTS => held.push(object),
                (_, Some(row)) => {
                    self.next = Some(row);
                    return Ok(Some(piece));
                }
                (_, None) => {
                    self.is_over = true;
                    return Ok(Some(piece));
                }
            }
        }
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Piece, Cause>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        match self.piece() {
            Ok(Some(piece)) => Some(Ok(piece)),
            Ok(None) => {
                self.is_over = true;
                None
            }
            Err(error) => {
                self.is_over = true;
                Some(Err(Arc::new(io::Error::other(format!("line {}: {error}", self.line))) as Cause))
            }
        }
    }
}

fn realm_record(line: RealmLine) -> Outcome<RealmRecord> {
    let function = FingerprintFunction::from_number(line.function).ok_or("no such fingerprint function")?;
    let key: [u8; 16] = STANDARD.decode(line.key)?.try_into().map_err(|_| "a fingerprint key has 16 bytes")?;
    let width = Width::from_bits(line.width).ok_or("no such fingerprint width")?;
    Issuer::new(&line.issuer)?;
    let realm = Realm {
        id: RealmId::new(&line.realm)?,
        issuer: line.issuer,
        fingerprinter: Fingerprinter::new(function, RealmKey(key), width),
        leeway: Duration::from_secs(number(line.leeway)?),
        max_token_lifetime: Duration::from_secs(number(line.max_token_lifetime)?),
        created: time(line.created)?,
    };
    let covered_until = line.covered_until.map(time).transpose()?;
    Ok(RealmRecord {
        realm,
        term: Term(line.term),
        head: Sequence(number(line.head)?),
        stored: number(line.entries)?,
        cutoffs: number(line.cutoffs)?,
        devices: number(line.devices)?,
        tokens: number(line.tokens)?,
        refreshes: number(line.refreshes)?,
        coverage: Coverage { registered: number(line.registered)?, covered_until },
    })
}

fn entry(record: Record, statement: Statement) -> Outcome<Entry> {
    let Record { sequence, at, actor, reason } = record;
    Ok(Entry {
        sequence: Sequence(number(sequence)?),
        at: time(at)?,
        statement,
        reason: reason.map(|reason| within("reason", reason, REASON_BYTES_MAX)).transpose()?,
        actor: within("actor", actor, ACTOR_BYTES_MAX)?,
    })
}

fn device(line: DeviceLine) -> Outcome<Device> {
    if line.audience.len() > AUDIENCES_MAX {
        return Err(format!("{} audiences are more than {AUDIENCES_MAX}", line.audience.len()).into());
    }
    let audience = line.audience.into_iter().map(|text| within("audience", text, SCOPE_BYTES_MAX));
    Ok(Device {
        id: DeviceId::new(&line.id)?,
        signing: PublicKey(bytes("a key", &line.signing)?),
        sealing: EnvelopePublicKey::parse(bytes("a key", &line.sealing)?)?,
        subject: within("subject", line.subject, SCOPE_BYTES_MAX)?,
        audience: audience.collect::<Outcome<_>>()?,
        enrolled_at: time(line.enrolled_at)?,
        counter: line.counter,
        holds: line.holds.map(token).transpose()?,
        held_until: line.held_until.map(time).transpose()?,
        barred: line.barred,
    })
}

fn issued_token(line: TokenLine) -> Outcome<IssuedToken> {
    Ok(IssuedToken {
        jti: token(line.jti)?,
        iat: time(line.iat)?,
        exp: time(line.exp)?,
        sub: name("sub", line.sub)?,
        kid: name("kid", line.kid)?,
        client: name("client", line.client)?,
        device: line.device.as_deref().map(DeviceId::new).transpose()?,
        parent: line.parent.map(token).transpose()?,
        family: token(line.family)?,
        kept_until: time(line.kept_until)?,
    })
}

fn refresh_token(line: RefreshLine) -> Outcome<RefreshToken> {
    let state = match line.state.as_str() {
        "live" => RefreshState::Live,
        "spent" => RefreshState::Spent,
        "ended" => RefreshState::Ended,
        other => return Err(format!("no refresh token is {other:?}").into()),
    };
    Ok(RefreshToken {
        hash: bytes("a SHA-256", &line.sha256)?,
        exp: time(line.exp)?,
        state,
        jti: token(line.jti)?,
        iat: time(line.iat)?,
        sub: name("sub", line.sub)?,
        kid: name("kid", line.kid)?,
        client: name("client", line.client)?,
        device: line.device.as_deref().map(DeviceId::new).transpose()?,
        family: token(line.family)?,
    })
}

fn name(what: &str, text: Option<String>) -> Outcome<Option<String>> {
    text.map(|text| within(what, text, SCOPE_BYTES_MAX)).transpose()
}

fn bytes(what: &str, text: &str) -> Outcome<[u8; 32]> {
    STANDARD.decode(text)?.try_into().map_err(|_| format!("{what} has 32 bytes").into())
}

fn token(jti: String) -> Outcome<String> {
    Jti::new(&jti)?;
    Ok(jti)
}

fn scope_of(kind: &str, of: String) -> Outcome<Scope> {
    let of = within("scope", of, SCOPE_BYTES_MAX)?;
    match (kind, of.is_empty()) {
        ("realm", true) => Ok(Scope::Realm),
        ("sub", false) => Ok(Scope::Sub(of)),
        ("kid", false) => Ok(Scope::Kid(of)),
        ("client", false) => Ok(Scope::Client(of)),
        _ => Err(format!("there is no scope {kind:?} of {of:?}").into()),
    }
}

fn within(what: &str, text: String, bytes: usize) -> Outcome<String> {
    if text.len() > bytes { Err(format!("the {what} is longer than {bytes} bytes").into()) } else { Ok(text) }
}

/// Ledgers count in signed numbers.
fn number(number: u64) -> Outcome<u64> {
    if i64::try_from(number).is_ok() {
        Ok(number)
    } else {
        Err(format!("{number} is more than a ledger counts to").into())
    }
}

fn time(secs: u64) -> Outcome<UnixTime> {
    number(secs).map(UnixTime::from_secs)
}
