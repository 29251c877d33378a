//! Every maximum in one place, each with its reason.
//!
//! A list, queue or message is compared with its limit before memory is taken for it. What is not
//! here: tuning that a deployment chooses (intervals, chunk size); that lives in each config.

use core::time::Duration;

/// Bytes of a `jti`. UUIDs take 36; 256 leaves room for URIs and keeps hashing bounded.
pub const JTI_BYTES_MAX: usize = 256;

/// Bytes of a `sub`, `kid` or client id that a cutoff can name.
pub const SCOPE_BYTES_MAX: usize = 1024;

/// Bytes of a realm id. It stands in every topic and every sealed object.
pub const REALM_BYTES_MAX: usize = 64;

/// Bytes of an `iss` value.
pub const ISSUER_BYTES_MAX: usize = 1024;

/// Smallest chunk size a publisher may choose: below it, headers outweigh content.
pub const CHUNK_BYTES_MIN: usize = 2 * 1024;

/// Largest chunk size: 256 KiB is what the common brokers can be made to retain.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;

/// Chunk size unless configured: brokers in the field cap retained payloads at 64 or 128 KB.
pub const CHUNK_BYTES_DEFAULT: usize = 32 * 1024;

/// Bytes of any sealed object: a chunk's content plus its envelope.
pub const SEALED_BYTES_MAX: usize = CHUNK_BYTES_MAX + 1024;

/// Signatures on one sealed object. A root threshold larger than this is not useful.
pub const SIGNATURES_MAX: usize = 16;

/// Root keys in one `keys` object.
pub const ROOTS_MAX: usize = 16;

/// Publisher keys in one `keys` object: two in use, two rotating in, with room.
pub const PUBLISHERS_MAX: usize = 16;

/// Bytes of one artifact (filter, list, ...): 100 million entries at 30 bits fit.
pub const ARTIFACT_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Entries of one base. Above it a realm should be split by issuer.
pub const BASE_ENTRIES_MAX: u64 = 100_000_000;

/// Catch-up deltas that a manifest names. A binary counter of 2^32 steps has 32 digits; twice
/// that leaves room for pieces that may not merge because of the chunk size.
pub const LADDER_PIECES_MAX: usize = 64;

/// Keys that `recent` holds before it overflows. About 1 MiB; epochs change long before.
pub const RECENT_ENTRIES_MAX: usize = 65_536;

/// The smallest memory budget of a device: keys, manifest and bookkeeping, a few recent revocations, a small filter.
pub const MEMORY_BUDGET_MIN: u64 = 8 * 1024;

/// Live cutoffs of one realm. They are exact and looked at on every question.
pub const CUTOFFS_MAX: usize = 4_096;

/// Ranges of deltas that arrived ahead of a gap. More means that a base is cheaper.
pub const EARLY_RANGES_MAX: usize = 64;

/// Chunk topics a replica asks for at a time: brokers silently drop what overflows a queue.
pub const FETCH_WINDOW: usize = 8;

/// Bytes of one persisted state image without its base: `recent` at its limit and some.
pub const STATE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of the id that a device has in topics: what every broker takes as a client id.
pub const DEVICE_ID_BYTES_MAX: usize = 64;

/// Bytes of a token (compact JWS) that is delivered: what HTTP servers take as a header, and all that a validator reads.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Bytes that enclosing adds: the key of the sender that is used once (32) and the tag (16).
pub const ENCLOSURE_BYTES: usize = 32 + 16;

/// Bytes of what a delivery carries: the kind of notice, the longest token, and its enclosure.
pub const DELIVERY_CONTENT_BYTES_MAX: usize = 1 + TOKEN_BYTES_MAX + ENCLOSURE_BYTES;

/// Bytes of the issuer's public keys (RFC 7517): some twenty RSA keys, or a hundred others.
pub const ISSUER_KEYS_BYTES_MAX: usize = 16 * 1024;

/// Bytes of the template of the topics on which tokens are delivered.
pub const TOKEN_TOPIC_BYTES_MAX: usize = 256;

/// Questions of one device that may wait for an answer. An application that asks more at a time has
/// the wrong profile, or is under attack.
pub const ASKS_OUTSTANDING_MAX: usize = 8;

/// Questions that a device may ask in a row, before [`ASK_EVERY`] holds it back.
pub const ASKS_BURST: u32 = 8;

/// How often a device may ask in the long run. A million devices that are all shown suspects must not
/// become an attack on the server.
pub const ASK_EVERY: Duration = Duration::from_secs(1);

/// How long an answer is waited for. Whoever stands at a door waits no longer.
pub const ASK_PATIENCE: Duration = Duration::from_secs(5);

/// Keys that `recent` may hold and still take in what answers say: a quarter, so that tokens shown to
/// a device on purpose never leave it without room for what deltas say.
pub const RECENT_ANSWERS_MAX: usize = RECENT_ENTRIES_MAX / 4;

/// Versions of `keys` that a device goes through to reach the newest: at one a month, 85 years.
pub const KEYS_STEPS_MAX: u32 = 1_024;

/// Bytes of a sealed `keys` object at all its limits, rounded up.
pub const KEYS_BYTES_MAX: usize = 4 * 1024;

/// Probes a filter may announce per line. Six serve a rate of 1e-4; more only cost time.
pub const PROBES_PER_LINE_MAX: u8 = 7;

/// Bytes of the reason that a ledger entry keeps: a sentence or a ticket, not a document.
pub const REASON_BYTES_MAX: usize = 1024;

/// Bytes of the name of who asked for a ledger entry.
pub const ACTOR_BYTES_MAX: usize = 256;

/// Requests in one call to the ledger or the API: all or nothing, so one transaction must hold them.
pub const BATCH_REQUESTS_MAX: usize = 10_000;

/// Bytes of the body of one HTTP request: a full batch with UUIDs takes about 1 MB.
pub const BODY_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Issued tokens that one call registers. Appends wait behind it: each token falls into a page of its own, so a full
/// call writes some 8 MB to the log.
pub const ISSUED_BATCH_MAX: usize = 2_000;

/// Bytes of one line of a report of issued tokens: the longest `jti` and `sub` fit, with some escapes.
pub const ISSUED_LINE_BYTES_MAX: usize = 4 * 1024;

/// Lines of one report whose refusal is told in words; the rest are only counted.
pub const ISSUED_PROBLEMS_MAX: usize = 100;

/// Parts of a registry that are visited at a time, each on a thread and a connection of its own.
pub const REGISTRY_PARTS_MAX: usize = 16;

/// Clean `jti`s drawn in one request.
pub const CLEAN_JTIS_MAX: usize = 1_000;
