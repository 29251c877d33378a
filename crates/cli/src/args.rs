//! What can be said on the command line.

#![expect(clippy::doc_markdown, reason = "doc comments are the help text, printed as they stand")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{ArgGroup, Args, FromArgMatches, Parser, Subcommand, ValueEnum};
use revocast_core::{Profile, TokenTopic};
use revocast_device::LIFETIME_MAX_DEFAULT;
use revocast_server::config::{SETTINGS, Setting};
use revocast_server::issuer::Algorithm;

/// Makes "this token is revoked" true on every device about a second after somebody says so.
#[derive(Debug, Parser)]
#[command(
    name = "revocast",
    version,
    after_help = "Exit codes: 0 done; 1 failed; 2 called wrongly; 3 at least one token was rejected (verify).\n\
                  Logs go to standard error; REVOCAST_LOG=debug says more."
)]
pub struct Arguments {
    /// Print JSON: results on standard output, errors and logs as JSON on standard error.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows everything in one go: server, broker, devices, real tokens. Ends by itself.
    Demo(Demo),
    /// Makes root, publisher and issuer keys, and the trust file that devices pin.
    Keygen {
        /// Folder to write them to; nothing in it is overwritten.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Runs the server: API, ledger, publisher.
    Serve(Serve),
    /// Checks and prints what `serve` would be configured with.
    Config {
        /// What to do.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Adds, lists, rotates and removes credentials of the API. A running server takes them up at once.
    Credential {
        /// What to do.
        #[command(subcommand)]
        command: CredentialCommand,
        /// Folder of the server's keys; credentials stand in credentials.json there.
        #[arg(long, global = true, value_name = "DIR", env = "REVOCAST_KEYS", default_value = "data/keys")]
        keys: PathBuf,
    },
    /// Makes, imports, lists, rotates and removes the keys that sign tokens. A running server takes them up at once.
    IssuerKey {
        /// What to do.
        #[command(subcommand)]
        command: IssuerKeyCommand,
        /// Folder of the server's keys; those that sign tokens stand in issuer/REALM there.
        #[arg(long, global = true, value_name = "DIR", env = "REVOCAST_KEYS", default_value = "data/keys")]
        keys: PathBuf,
    },
    /// Replaces the key that seals what is published.
    PublisherKey {
        /// What to do.
        #[command(subcommand)]
        command: PublisherKeyCommand,
    },
    /// Replaces a key that says who may publish.
    RootKey {
        /// What to do.
        #[command(subcommand)]
        command: RootKeyCommand,
    },
    /// Enrolls devices, lists them, gives them tokens, dismisses them.
    Device {
        /// What to do.
        #[command(subcommand)]
        command: DeviceCommand,
    },
    /// Issues tokens with the server's own issuer.
    Token {
        /// What to do.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Founds realms and lists them.
    Realm {
        /// What to do.
        #[command(subcommand)]
        command: RealmCommand,
        /// Which server.
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Revokes a token.
    Revoke(Revoke),
    /// Undoes a revoke that was a mistake.
    Reinstate {
        /// The realm of the token.
        #[arg(long)]
        realm: String,
        /// The `jti` of the token.
        #[arg(long)]
        jti: String,
        /// Why; kept in the ledger.
        #[arg(long)]
        reason: Option<String>,
        /// Which server.
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Revokes every token in a scope that was issued before a time.
    Cutoff {
        /// Which tokens.
        #[command(flatten)]
        scope: ScopeArguments,
        /// Those issued before this, seconds since 1970 [default: all issued up to now].
        #[arg(long, value_name = "UNIX")]
        not_before: Option<u64>,
        /// Which server.
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Ends a cutoff.
    Lift {
        /// Of which tokens.
        #[command(flatten)]
        scope: ScopeArguments,
        /// Which server.
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Tells the server which tokens were issued.
    Issued {
        /// What to do.
        #[command(subcommand)]
        command: IssuedCommand,
        /// Which server.
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Revokes every token of a list that another system kept: NDJSON, CSV, or keys of Redis.
    ///
    /// May be repeated: what is revoked already changes nothing.
    Import(Import),
    /// Looks at a ledger, moves it, tidies it; the server of an embedded one must not run.
    Ledger {
        /// What to do.
        #[command(subcommand)]
        command: LedgerCommand,
    },
    /// Draws `jti`s for new tokens that no filter of the devices flags.
    Jti {
        /// The realm of the tokens.
        #[arg(long)]
        realm: String,
        /// How many.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
        count: u32,
        /// Which server.
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Shows what would be published now, and why: the server publishes by itself.
    Publish {
        /// Told, not done; there is nothing else that this command could do.
        #[arg(long, required = true)]
        dry_run: bool,
        /// Of this realm alone.
        #[arg(long)]
        realm: Option<String>,
        /// Which server: the one that leads.
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Shows how the server is.
    Status {
        /// Which server.
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Shows how the devices are, as they say themselves: who is online, who is current, who refuses.
    Fleet {
        /// The realm [default: all of them].
        #[arg(long)]
        realm: Option<String>,
        /// Look again every two seconds, until it is interrupted.
        #[arg(long)]
        watch: bool,
        /// Which server.
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Follows a realm as a device does, logs what happens, answers questions on loopback.
    Agent(Box<Agent>),
    /// Validates tokens from standard input, one a line; prints a JSON verdict a line.
    Verify(Verify),
    /// Says in words what a sealed object or a state file holds.
    Inspect {
        /// The file; or a state folder of an agent.
        file: PathBuf,
        /// Check signatures against this trust file.
        #[arg(long, value_name = "TRUST")]
        verify: Option<PathBuf>,
        /// The sealed `keys` object that names the publisher keys; state files bring their own.
        #[arg(long, value_name = "FILE", requires = "verify")]
        keys: Option<PathBuf>,
    },
}

/// `demo`
#[derive(Clone, Copy, Debug, Args)]
pub struct Demo {
    /// Devices that follow, each with its own connection.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=400))]
    pub devices: u32,
    /// Tokens to revoke; as many stay good.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub revocations: u32,
}

/// `serve`
#[derive(Clone, Debug, Args)]
#[command(after_help = SETTINGS_HELP)]
pub struct Serve {
    /// TOML file with the same settings; environment and command line win.
    #[arg(long, value_name = "FILE", env = "REVOCAST_CONFIG")]
    pub config: Option<PathBuf>,
    /// Settings.
    #[command(flatten)]
    pub settings: SettingArguments,
    /// Confirm that a ledger which ends before what was published (a restored backup) goes on, in a
    /// new term.
    #[arg(long)]
    pub resume: bool,
    /// Confirm that the clock is right although it stands far beyond the last signed time.
    #[arg(long)]
    pub confirm_clock: bool,
}

/// Told below the list of settings.
const SETTINGS_HELP: &str = "Every setting can stand in the config file and in the environment as well: --broker-ca FILE is \
    broker_ca = 'FILE' there,\nand REVOCAST_BROKER_CA here. The command line wins over the environment, the environment over \
    the file.\nrevocast config print shows all of them, config check says what is wrong.";

/// `config`
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Says everything that is wrong with a configuration: exit code 1 if anything is.
    #[command(after_help = SETTINGS_HELP)]
    Check(ConfigArguments),
    /// Prints the configuration in effect as a config file, with the origin of each value.
    #[command(after_help = SETTINGS_HELP)]
    Print(ConfigArguments),
}

/// What `config` looks at.
#[derive(Clone, Debug, Args)]
pub struct ConfigArguments {
    /// The config file.
    #[arg(value_name = "FILE", env = "REVOCAST_CONFIG")]
    pub file: Option<PathBuf>,
    /// Settings.
    #[command(flatten)]
    pub settings: SettingArguments,
}

/// The settings of the server that stand on the command line, as written.
#[derive(Clone, Debug, Default)]
pub struct SettingArguments(Vec<(&'static str, String)>);

impl SettingArguments {
    /// Names of settings with their texts.
    pub fn given(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (*name, text.as_str()))
    }
}

/// Flags live as long as the program.
static FLAGS: LazyLock<Vec<String>> = LazyLock::new(|| SETTINGS.iter().map(Setting::flag).collect());

impl Args for SettingArguments {
    fn augment_args(command: clap::Command) -> clap::Command {
        let arguments = SETTINGS.iter().zip(FLAGS.iter()).map(|(setting, flag)| {
            clap::Arg::new(setting.name).long(flag.as_str()).value_name(setting.value).help(setting.help)
        });
        command.args(arguments)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingArguments {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut arguments = Self::default();
        arguments.update_from_arg_matches(matches)?;
        Ok(arguments)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        self.0 = SETTINGS
            .iter()
            .filter_map(|setting| Some((setting.name, matches.get_one::<String>(setting.name)?.clone())))
            .collect();
        Ok(())
    }
}

/// Which server an administrative command talks to.
#[derive(Clone, Debug, Args)]
pub struct ServerArguments {
    /// The server.
    // Global, so that `realm create NAME --server URL` is understood as well as `realm --server URL create NAME`.
    #[arg(long, global = true, value_name = "URL", env = "REVOCAST_SERVER", default_value = "http://127.0.0.1:8180")]
    pub server: String,
    /// File with the bearer token; `keygen` wrote it.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "REVOCAST_ADMIN_TOKEN_FILE",
        default_value = "data/keys/admin.token"
    )]
    pub admin_token_file: PathBuf,
    /// Certificates that vouch for an https server, PEM.
    #[arg(long, global = true, value_name = "FILE", env = "REVOCAST_CA")]
    pub ca: Option<PathBuf>,
}

/// `credential`
#[derive(Clone, Debug, Subcommand)]
pub enum CredentialCommand {
    /// Adds one and prints its secret, this once.
    Add(Box<NewCredential>),
    /// Lists them, without secrets.
    List,
    /// Draws a new secret; the one before stays valid until the next rotation, or until --retire.
    Rotate {
        /// Its name.
        name: String,
        /// Draw none, and end the older one: every client has the new one.
        #[arg(long)]
        retire: bool,
    },
    /// Removes one; its secrets are not accepted any more.
    Remove {
        /// Its name.
        name: String,
    },
}

/// `credential add`
#[derive(Clone, Debug, Args)]
pub struct NewCredential {
    /// Whom the ledger names as the actor: 1 to 64 of a-z A-Z 0-9 . _ -
    pub name: String,
    /// What it may do: revoker, issuer, client, reader, broker, admin. May be given more than once.
    #[arg(long = "role", value_name = "ROLE", required = true, value_parser = crate::credential::role)]
    pub roles: Vec<revocast_server::credentials::Role>,
    /// Where it may do it; may be given more than once [default: every realm].
    #[arg(long = "realm", value_name = "REALM")]
    pub realms: Vec<String>,
    /// From when on it is not accepted any more, seconds since 1970.
    #[arg(long, value_name = "UNIX")]
    pub expires: Option<u64>,
    /// Requests a second, instead of the server's default.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub requests_per_second: Option<u32>,
    /// Revocations a day, instead of the server's default; a cutoff counts as 10 to 10,000.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub bulk_per_day: Option<u64>,
    /// A second credential must confirm its cutoffs of a whole realm.
    #[arg(long)]
    pub approve: bool,
}

/// `issuer-key`
#[derive(Clone, Debug, Subcommand)]
pub enum IssuerKeyCommand {
    /// Makes a key that signs at once: for the first of a realm. Later ones come with rotate.
    Generate {
        /// The realm of the tokens.
        #[arg(long)]
        realm: String,
        /// How it signs: EdDSA, ES256, HS256; RS256 and PS256 are made with OpenSSL and imported.
        #[arg(long, value_name = "ALG", default_value = "EdDSA", value_parser = crate::issuer_key::algorithm)]
        alg: Algorithm,
    },
    /// Takes in a key that was made elsewhere; it signs after the lead.
    Import {
        /// PEM with PKCS #8; for HS256 a key set with one key, or the secret in base64url.
        file: PathBuf,
        /// The realm of the tokens.
        #[arg(long)]
        realm: String,
        /// How it signs: EdDSA, ES256, RS256, PS256, HS256.
        #[arg(long, value_name = "ALG", value_parser = crate::issuer_key::algorithm)]
        alg: Algorithm,
        /// When it begins to sign.
        #[command(flatten)]
        start: Start,
    },
    /// Lists the keys of a realm and what each is for.
    List {
        /// The realm of the tokens.
        #[arg(long)]
        realm: String,
    },
    /// Makes the next key: published at once, so that validators have it when it signs, after the lead.
    Rotate {
        /// The realm of the tokens.
        #[arg(long)]
        realm: String,
        /// How it signs [default: as the one before].
        #[arg(long, value_name = "ALG", value_parser = crate::issuer_key::algorithm)]
        alg: Option<Algorithm>,
        /// When it begins to sign.
        #[command(flatten)]
        start: Start,
    },
    /// Removes a key: no token that it signed is accepted by whoever has heard of it. For one that was stolen, and for
    /// one that is over.
    Remove {
        /// Which.
        kid: String,
        /// The realm of the tokens.
        #[arg(long)]
        realm: String,
        /// It signs at present, or has signed tokens that may still be honored.
        #[arg(long)]
        force: bool,
    },
    /// Writes the public keys of a realm to a file, or the secret of HS256, which only validators may have.
    Export {
        /// The file; must not be there yet.
        file: PathBuf,
        /// The realm of the tokens.
        #[arg(long)]
        realm: String,
        /// The secrets of HS256: whoever reads the file can issue tokens.
        #[arg(long)]
        secret: bool,
    },
}

/// When a key begins to sign.
#[derive(Clone, Copy, Debug, Args)]
pub struct Start {
    /// How long it is published before it signs, seconds: every validator should ask within that time.
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(..=30 * 24 * 3_600))]
    pub lead: u64,
    /// It signs at once: the one before was stolen. Who has not heard of it yet refuses its tokens until then.
    #[arg(long, conflicts_with = "lead")]
    pub now: bool,
}

/// `device`
#[derive(Clone, Debug, Subcommand)]
pub enum DeviceCommand {
    /// Makes the keys of a device, on the device, and prints what it is enrolled with.
    Keygen(DeviceKeygen),
    /// Enrolls a device by what it printed of its keys; may be repeated.
    Enroll(Box<Enroll>),
    /// Lists the devices of a realm and what they hold.
    List {
        /// The realm.
        #[arg(long)]
        realm: String,
        /// Which server.
        #[command(flatten)]
        server: ServerArguments,
    },
    /// Enrolls a device no longer, and revokes its tokens.
    Dismiss {
        /// Which.
        #[command(flatten)]
        name: DeviceName,
        /// Why; kept in the ledger.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Issues a token to a device and delivers it.
    Token {
        /// Which.
        #[command(flatten)]
        name: DeviceName,
        /// How long it lives, seconds [default: as the tokens of the realm].
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        lifetime: Option<u64>,
    },
}

/// `device enroll`
#[derive(Clone, Debug, Args)]
pub struct Enroll {
    /// What the device printed of its keys (`device keygen`); - for standard input.
    pub file: PathBuf,
    /// The realm [default: the one that the device means].
    #[arg(long)]
    pub realm: Option<String>,
    /// Whom its tokens are for (`aud`); may be given more than once.
    #[arg(long, value_name = "AUD", required = true)]
    pub audience: Vec<String>,
    /// Whom its tokens speak of (`sub`) [default: its name].
    #[arg(long, value_name = "SUB")]
    pub subject: Option<String>,
    /// It may take the place of one of this name with other keys, whose tokens are revoked.
    #[arg(long)]
    pub replace: bool,
    /// Which server.
    #[command(flatten)]
    pub server: ServerArguments,
}

/// A device at a server.
#[derive(Clone, Debug, Args)]
pub struct DeviceName {
    /// The device.
    pub device: String,
    /// Its realm.
    #[arg(long)]
    pub realm: String,
    /// Which server.
    #[command(flatten)]
    pub server: ServerArguments,
}

/// `token`
#[derive(Clone, Debug, Subcommand)]
pub enum TokenCommand {
    /// Issues a token and prints it.
    Issue(Box<IssueToken>),
}

/// `token issue`
#[derive(Clone, Debug, Args)]
pub struct IssueToken {
    /// The realm of the token.
    #[arg(long)]
    pub realm: String,
    /// Whom it speaks of.
    #[arg(long)]
    pub sub: String,
    /// Whom it is for (`aud`); may be given more than once.
    #[arg(long, value_name = "AUD", required = true)]
    pub audience: Vec<String>,
    /// How long it lives, seconds [default: as the tokens of the realm].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub lifetime: Option<u64>,
    /// Claims besides, a JSON object.
    #[arg(long, value_name = "JSON")]
    pub claims: Option<String>,
    /// The client it is issued to.
    #[arg(long)]
    pub client: Option<String>,
    /// A refresh token comes with it, on a line of its own.
    #[arg(long)]
    pub refresh: bool,
    /// Which server.
    #[command(flatten)]
    pub server: ServerArguments,
}

/// `publisher-key`
#[derive(Clone, Debug, Subcommand)]
pub enum PublisherKeyCommand {
    /// Makes a new key, lets the root key name it in every realm, and puts it into force.
    ///
    /// May be repeated: what was interrupted goes on with the same key.
    Rotate(Box<RotatePublisher>),
}

/// `publisher-key rotate`
#[derive(Clone, Debug, Args)]
pub struct RotatePublisher {
    /// Folder of the server's keys; the new publisher.key is put there.
    #[arg(long, value_name = "DIR", env = "REVOCAST_KEYS", default_value = "data/keys")]
    pub keys: PathBuf,
    /// A root key; as many as the realms want [default: root.key in the folder of the keys].
    #[arg(long = "root", value_name = "FILE")]
    pub roots: Vec<PathBuf>,
    /// How long what the key before sealed is believed, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 24 * 3_600, value_parser = clap::value_parser!(u64).range(1..=90 * 24 * 3_600))]
    pub overlap: u64,
    /// Nothing that the key before seals is believed any more: it was stolen.
    #[arg(long, conflicts_with = "overlap")]
    pub now: bool,
    /// Which server: the one that leads.
    #[command(flatten)]
    pub server: ServerArguments,
}

/// `root-key`
#[derive(Clone, Debug, Subcommand)]
pub enum RootKeyCommand {
    /// Makes a new root key and puts it in the place of another in every realm, and in what devices to come pin.
    ///
    /// Devices that are out there need nothing: the root keys before have signed who comes after them. May be repeated:
    /// what was interrupted goes on with the same key.
    Rotate(Box<RotateRoot>),
}

/// `root-key rotate`
#[derive(Clone, Debug, Args)]
pub struct RotateRoot {
    /// Folder of the server's keys; the new root.key and trust.json are put there.
    #[arg(long, value_name = "DIR", env = "REVOCAST_KEYS", default_value = "data/keys")]
    pub keys: PathBuf,
    /// A root key that signs; as many as the realms want [default: root.key in the folder of the keys].
    #[arg(long = "root", value_name = "FILE")]
    pub roots: Vec<PathBuf>,
    /// Which root key is replaced, by its name of 16 digits; needed only where there are several.
    #[arg(long, value_name = "ID")]
    pub replace: Option<String>,
    /// Which server: the one that leads.
    #[command(flatten)]
    pub server: ServerArguments,
}

/// `realm`
#[derive(Clone, Debug, Subcommand)]
pub enum RealmCommand {
    /// Founds a realm: one issuer, one history.
    Create {
        /// Its name: a-z, 0-9 and hyphens.
        name: String,
        /// The `iss` of its tokens.
        #[arg(long, value_name = "ISS")]
        issuer: String,
        /// How fingerprints are made: xxh3 only if nobody but the issuer can choose a `jti`.
        #[arg(long, value_enum, default_value_t = Fingerprint::Sha256)]
        fingerprint: Fingerprint,
        /// Bits of a fingerprint.
        #[arg(long, default_value = "48", value_parser = ["40", "48", "64"])]
        width: String,
        /// Clock difference to allow for, seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        leeway: u64,
        /// No token of this issuer lives longer, seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 30 * 24 * 3600)]
        max_token_lifetime: u64,
    },
    /// Lists the realms.
    List,
}

/// `--fingerprint`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Fingerprint {
    /// Fast; for realms whose issuer mints unpredictable `jti`s itself.
    Xxh3,
    /// For realms where somebody else may choose a `jti`.
    Sha256,
}

/// `revoke`
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["jti", "token"]))]
pub struct Revoke {
    /// The realm of the token.
    #[arg(long)]
    pub realm: String,
    /// The `jti` of the token.
    #[arg(long, requires = "exp")]
    pub jti: Option<String>,
    /// When the token expires, seconds since 1970.
    #[arg(long, value_name = "UNIX", requires = "jti")]
    pub exp: Option<u64>,
    /// The token itself.
    #[arg(long, value_name = "JWT")]
    pub token: Option<String>,
    /// Why; kept in the ledger.
    #[arg(long)]
    pub reason: Option<String>,
    /// Which server.
    #[command(flatten)]
    pub server: ServerArguments,
}

/// The scope of `cutoff` and `lift`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("scope").required(true).args(["whole_realm", "sub", "kid", "client"]))]
pub struct ScopeArguments {
    /// The realm of the tokens.
    #[arg(long)]
    pub realm: String,
    /// All tokens of the realm.
    #[arg(long)]
    pub whole_realm: bool,
    /// The tokens that speak of this subject.
    #[arg(long, value_name = "SUB")]
    pub sub: Option<String>,
    /// The tokens signed by this key.
    #[arg(long, value_name = "KID")]
    pub kid: Option<String>,
    /// The tokens issued to this client.
    #[arg(long, value_name = "CLIENT")]
    pub client: Option<String>,
    /// Why; kept in the ledger.
    #[arg(long)]
    pub reason: Option<String>,
}

/// `issued`
#[derive(Clone, Debug, Subcommand)]
pub enum IssuedCommand {
    /// Registers tokens from a file, one JSON object a line: {"jti":"...","iat":1,"exp":2,"sub":"..."}, sub optional.
    ///
    /// May be repeated: what is registered already changes nothing.
    Import {
        /// The file; - for standard input.
        file: PathBuf,
        /// The realm of the tokens.
        #[arg(long)]
        realm: String,
        /// Every token issued before this is registered now, seconds since 1970; told to the server only if no line
        /// was refused.
        #[arg(long, value_name = "UNIX")]
        complete_until: Option<u64>,
        /// Begin at this line, where an import before stopped.
        #[arg(long, value_name = "LINE", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        from_line: u64,
    },
}

/// `import`
#[derive(Clone, Debug, Args)]
pub struct Import {
    /// The list; - for standard input.
    pub file: PathBuf,
    /// The realm of the tokens.
    #[arg(long)]
    pub realm: String,
    /// How the list is written [default: csv if its name ends so, otherwise ndjson].
    ///
    /// ndjson: {"jti":"...","exp":1999999999,"reason":"..."} a line, reason optional. csv: the first line names the
    /// columns, jti and exp among them, reason optional; exp in seconds since 1970 or as RFC 3339. redis: what
    /// redis-cli --scan prints, a key a line.
    #[arg(long, value_enum)]
    pub format: Option<ListFormat>,
    /// How a key of Redis is made of a jti, such as 'denylist:{jti}'.
    #[arg(long, value_name = "PATTERN", default_value = "{jti}")]
    pub key: String,
    /// What stands behind each key of Redis, separated by a space: its TTL, or its EXPIRETIME. Without, every
    /// revocation is kept as long as a token of the realm can live.
    #[arg(long, value_enum)]
    pub value: Option<KeyValue>,
    /// Why, for tokens of which the list does not say it; kept in the ledger.
    #[arg(long)]
    pub reason: Option<String>,
    /// Go on after a line that was refused; told and counted it is in any case.
    #[arg(long)]
    pub keep_going: bool,
    /// Begin at this line, where an import before stopped.
    #[arg(long, value_name = "LINE", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub from_line: u64,
    /// Which server.
    #[command(flatten)]
    pub server: ServerArguments,
}

/// `--format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// A JSON object a line.
    Ndjson,
    /// Columns, named by the first line.
    Csv,
    /// A key a line.
    Redis,
}

/// `--value`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeyValue {
    /// Seconds left, as TTL says.
    Ttl,
    /// Seconds since 1970, as EXPIRETIME says.
    Exp,
}

/// `ledger`
#[derive(Clone, Debug, Subcommand)]
pub enum LedgerCommand {
    /// Reads everything and checks it: checksums, numbers, counts, signatures. Exit code 1 if something is wrong.
    Verify {
        /// Which ledger.
        #[command(flatten)]
        place: LedgerPlace,
    },
    /// Writes everything to a file, one JSON object a line. It holds the fingerprint keys of the realms, and only its
    /// owner may read it.
    Export {
        /// The file; must not be there yet.
        file: PathBuf,
        /// Which ledger.
        #[command(flatten)]
        place: LedgerPlace,
    },
    /// Reads an export into an empty ledger of any kind: all of it, or nothing.
    Import {
        /// The file.
        file: PathBuf,
        /// Which ledger.
        #[command(flatten)]
        place: LedgerPlace,
    },
    /// Gives back the room of what was forgotten.
    Compact {
        /// Which ledger.
        #[command(flatten)]
        place: LedgerPlace,
    },
}

/// Where a ledger is.
#[derive(Clone, Debug, Args)]
pub struct LedgerPlace {
    /// Data folder of an embedded ledger.
    #[arg(long, value_name = "DIR", required_unless_present = "ledger", conflicts_with = "ledger")]
    pub data: Option<PathBuf>,
    /// Ledger in a database: postgres://user@host:5432/name.
    #[arg(long, value_name = "URL")]
    pub ledger: Option<String>,
    /// File with the password of that user.
    #[arg(long, value_name = "FILE", requires = "ledger", env = "REVOCAST_LEDGER_PASSWORD_FILE")]
    pub ledger_password_file: Option<PathBuf>,
    /// Certificates that vouch for the database, PEM; with them, TLS is required.
    #[arg(long, value_name = "FILE", requires = "ledger")]
    pub ledger_ca: Option<PathBuf>,
}

/// `device keygen`
#[derive(Clone, Debug, Args)]
pub struct DeviceKeygen {
    /// Name of the device: that of its MQTT client, too.
    #[arg(long, value_name = "NAME")]
    pub id: String,
    /// The realm in which it is to be enrolled.
    #[arg(long)]
    pub realm: String,
    /// File to write the keys to; never overwritten, and readable by its owner alone.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// `agent`
#[derive(Clone, Debug, Args)]
pub struct Agent {
    #[command(flatten)]
    pub at: BrokerAccess,
    /// The realm to follow.
    #[arg(long)]
    pub realm: String,
    /// The trust file that `keygen` wrote.
    #[arg(long, value_name = "FILE")]
    pub trust: PathBuf,
    /// Folder for what must survive a restart.
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// Where to answer programs and proxies; loopback only, unless --allow-remote is given [default: 127.0.0.1:8181].
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Answer on an address that others can reach. Tokens cross that network in the clear.
    #[arg(long, requires = "listen")]
    pub allow_remote: bool,
    /// Where callers reach what this agent answers for, such as `https://api.example`: proofs of possession name it.
    /// Without it tokens that are bound to a key are refused.
    #[arg(long, value_name = "ORIGIN")]
    pub origin: Option<String>,
    /// Name of this client at the broker; that of the identity, or made from the state folder, unless given.
    #[arg(long, value_name = "ID")]
    pub client_id: Option<String>,
    /// Who this device is (`device keygen`): it gets tokens of its own, for GET /token, and signs what it reports.
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Topic on which the server delivers tokens.
    #[arg(long, value_name = "TEMPLATE", default_value = TokenTopic::DEFAULT)]
    pub token_topic: String,
    /// Audience of this device's own tokens, if it is another than --audience; may be given more than once.
    #[arg(long, value_name = "A", requires = "identity")]
    pub token_audience: Vec<String>,
    /// Take tokens that are not enclosed, too: whoever reads the topic has them then.
    #[arg(long, requires = "identity")]
    pub clear_tokens: bool,
    /// First level of every topic.
    #[arg(long, default_value = "revocast")]
    pub prefix: String,
    /// Memory for the realm, such as 64KiB, 1MiB or 65536: the best profile that fits is held.
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "profile")]
    pub memory: Option<u64>,
    /// What to hold of a base, whatever it takes [default: exact].
    #[arg(long, value_enum)]
    pub profile: Option<ProfileArgument>,
    /// Answer "unknown" when the last proof of currency is older, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 24 * 3600)]
    pub staleness: u64,
    /// Spread moves to a new epoch over this time, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub epoch_jitter: u64,
    /// Keys of the issuer (JWKS), to judge whole tokens with: a file, read again when it changes, or an https:// address
    /// [default: those that the server publishes].
    #[arg(long, value_name = "FILE|URL", requires = "audience")]
    pub jwks: Option<PathBuf>,
    /// Certificates that vouch for that address, PEM.
    #[arg(long, value_name = "FILE", requires = "jwks")]
    pub jwks_ca: Option<PathBuf>,
    /// Audience that tokens must be for, to judge whole tokens; may be given more than once.
    #[arg(long, value_name = "A")]
    pub audience: Vec<String>,
    /// Required `typ` of tokens.
    #[arg(long = "type", value_name = "T")]
    pub token_type: Option<String>,
    /// Clock difference to allow for, seconds; at most the realm's.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub leeway: u32,
    /// Longest life of a token, from iat to exp, seconds; that of the realm, 30 days unless it has another.
    #[arg(long, value_name = "SECONDS", default_value_t = LIFETIME_MAX_DEFAULT.as_secs())]
    pub lifetime: u64,
    /// Never ask the server about a token that this device is not sure of.
    #[arg(long)]
    pub no_ask: bool,
}

/// Where an agent's broker is, and how the agent is known there.
#[derive(Clone, Debug, Args)]
pub struct BrokerAccess {
    /// Broker to follow: mqtt://host:1883 or mqtts://host:8883.
    #[arg(long, value_name = "URL")]
    pub broker: String,
    /// Certificates that vouch for an mqtts broker, PEM.
    #[arg(long, value_name = "FILE")]
    pub broker_ca: Option<PathBuf>,
    /// Certificate by which the broker knows this device, PEM.
    #[arg(long, value_name = "FILE", requires_all = ["broker_ca", "broker_key"])]
    pub broker_certificate: Option<PathBuf>,
    /// Private key of that certificate, PEM.
    #[arg(long, value_name = "FILE", requires = "broker_certificate")]
    pub broker_key: Option<PathBuf>,
    /// User name at the broker.
    #[arg(long, value_name = "NAME", requires = "broker_password_file")]
    pub broker_user: Option<String>,
    /// File with the password at the broker.
    #[arg(long, value_name = "FILE", requires = "broker_user")]
    pub broker_password_file: Option<PathBuf>,
    /// Show the agent's own token to the broker as its password; --broker-password-file while it has none, and by turns
    /// with one that the broker refuses. The user name is --broker-user, or the realm.
    #[arg(long, requires = "identity")]
    pub broker_token: bool,
}

/// Reads a number of bytes: 65536, 64KiB or 1MiB.
fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = match (text.strip_suffix("KiB"), text.strip_suffix("MiB")) {
        (Some(number), _) => (number, 1024),
        (None, Some(number)) => (number, 1024 * 1024),
        (None, None) => (text, 1),
    };
    // Without the sign that `parse` would take.
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let bytes = digits.then(|| number.parse::<u64>().ok()?.checked_mul(unit)).flatten();
    bytes.ok_or_else(|| "no number of bytes; write it like 65536, 64KiB or 1MiB".to_owned())
}

/// `--profile`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProfileArgument {
    /// The published filter alone; a match is "suspect".
    Filter,
    /// The list alone, cut to 40 bits: a match is "suspect", rarely wrongly; slower.
    List,
    /// The list and a filter of its own: exact and fast.
    Exact,
    /// The published filter and its exceptions: exact for registered tokens.
    Covered,
    /// The published filter folded to half its size; more is "suspect".
    Folded,
    /// Folded to a quarter.
    FoldedTwice,
}

impl From<ProfileArgument> for Profile {
    fn from(profile: ProfileArgument) -> Self {
        match profile {
            ProfileArgument::Filter => Self::Filter,
            ProfileArgument::List => Self::List,
            ProfileArgument::Exact => Self::Exact,
            ProfileArgument::Covered => Self::Covered,
            ProfileArgument::Folded => Self::Folded,
            ProfileArgument::FoldedTwice => Self::FoldedTwice,
        }
    }
}

/// `verify`
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("revocations").args(["state", "revoked"]))]
pub struct Verify {
    /// Keys of the issuer (JWKS).
    #[arg(long, value_name = "FILE")]
    pub jwks: PathBuf,
    /// The `iss` that tokens must have.
    #[arg(long, value_name = "I")]
    pub issuer: String,
    /// The audience that tokens must be for; may be given more than once.
    #[arg(long, value_name = "A", required = true)]
    pub audience: Vec<String>,
    /// Required `typ`.
    #[arg(long = "type", value_name = "T")]
    pub token_type: Option<String>,
    /// Judge as of this time instead of now, seconds since 1970.
    #[arg(long, value_name = "UNIX")]
    pub at: Option<u64>,
    /// Clock difference to allow for, seconds.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub leeway: u32,
    /// Longest life of a token, from iat to exp, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = LIFETIME_MAX_DEFAULT.as_secs())]
    pub lifetime: u64,
    /// Judge tokens that are bound to a key as their holder does, without a proof.
    #[arg(long)]
    pub held: bool,
    /// State folder of an agent; without this or --revoked nothing is known about revocations, and
    /// tokens are judged by the rest.
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// JSON array of [iss, jti] pairs that are revoked.
    #[arg(long, value_name = "FILE")]
    pub revoked: Option<PathBuf>,
    /// Say with each verdict what it rests on: witness, position, age_seconds, profile, covered. Needs --state.
    #[arg(long)]
    pub why: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_bytes_kib_or_mib_and_nothing_else() {
        for (text, bytes) in [("65536", 65_536), ("64KiB", 65_536), ("1MiB", 1_048_576), ("0", 0)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "64K", "64kib", "64 KiB", "64KB", "+64", "-1", "1.5MiB", "1GiB", "18446744073709551616"]
        {
            let error = size(text).unwrap_err();
            assert!(["65536", "64KiB", "1MiB"].iter().all(|example| error.contains(example)), "{text}: {error}");
        }
        assert!(size("18446744073709551615KiB").is_err(), "more than a number holds");
    }
}
