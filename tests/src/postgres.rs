//! A private PostgreSQL: its own folder, its own port, gone when dropped.
//!
//! Uses nothing but std and tempfile, so that the unit tests of the server crate can include this file.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_mins(1);

/// The role that owns every database here.
const USER: &str = "revocast";

/// What it proves itself with. Nothing that a log may show.
pub const PASSWORD: &str = "a secret of the tests";

/// A running PostgreSQL that writes through to the disk, as one in production does.
#[derive(Debug)]
pub struct Postgres {
    /// `initdb`, `postgres` and the rest.
    programs: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
    databases: AtomicUsize,
}

impl Postgres {
    /// Founds one and starts it.
    ///
    /// # Panics
    ///
    /// If it cannot: without PostgreSQL the test has not run.
    #[must_use]
    pub fn start() -> Self {
        let programs = std::env::var_os("REVOCAST_POSTGRES").map_or_else(
            || panic!("REVOCAST_POSTGRES is not set; run the tests with tests/run, which installs what they need"),
            PathBuf::from,
        );
        let folder = tempfile::Builder::new().prefix("revocast-postgres-").tempdir().expect("a folder");
        let password = folder.path().join("password");
        fs::write(&password, PASSWORD).expect("a password file");
        if is_root() {
            let (user, group) = postgres_user();
            chown(folder.path(), Some(user), Some(group)).expect("a folder of that user");
            chown(&password, Some(user), Some(group)).expect("a file of that user");
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a folder others may enter");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = free.local_addr().expect("its number").port();
        drop(free);
        let mut postgres = Self { programs, folder, port, process: None, databases: AtomicUsize::new(0) };
        let made = postgres
            .as_user("initdb")
            .args(["--username", USER, "--auth-host=scram-sha-256", "--auth-local=trust", "--encoding=UTF8"])
            .args(["--locale=C", "--no-sync", "--pwfile"])
            .arg(&password)
            .arg("--pgdata")
            .arg(postgres.data())
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        postgres.restart();
        postgres
    }

    /// A new, empty database: its URL, without the password.
    ///
    /// # Panics
    ///
    /// If the server does not make one.
    #[must_use]
    pub fn database(&self) -> String {
        let name = format!("ledger{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let made = self.client("createdb").arg(&name).output().expect("createdb runs");
        assert!(made.status.success(), "createdb: {}", String::from_utf8_lossy(&made.stderr));
        format!("postgres://{USER}@127.0.0.1:{}/{name}", self.port)
    }

    /// A file with the password.
    #[must_use]
    pub fn password_file(&self) -> PathBuf {
        self.folder.path().join("password")
    }

    /// Everything that the server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Runs SQL in the database of a URL, and returns what it prints, without headings.
    ///
    /// # Panics
    ///
    /// If the server refuses it.
    pub fn sql(&self, url: &str, sql: &str) -> String {
        let database = url.rsplit('/').next().unwrap_or_default();
        let done = self
            .client("psql")
            .args([
                "--no-psqlrc",
                "--tuples-only",
                "--no-align",
                "--quiet",
                "-v",
                "ON_ERROR_STOP=1",
                "-c",
                sql,
                database,
            ])
            .output()
            .expect("psql runs");
        assert!(done.status.success(), "{sql}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    /// Ends it at once, as a crash does: nothing is written that was not written, connections break.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub fn crash(&mut self) {
        if let Some(mut process) = self.process.take() {
            signal(&process, "QUIT");
            let until = Instant::now() + PATIENCE;
            while process.try_wait().expect("a child of ours").is_none() {
                assert!(Instant::now() < until, "PostgreSQL does not end: {}", self.log());
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    /// Starts it, again if it runs, and waits until it answers.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn restart(&mut self) {
        self.crash();
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("log")).expect("a log");
        let process = self
            .as_user("postgres")
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.folder.path())
            .args(["-p", &self.port.to_string(), "-h", "127.0.0.1", "-c", "fsync=on", "-c", "shared_buffers=32MB"])
            .args(["-c", "unix_socket_permissions=0777", "-c", "max_connections=200"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("postgres runs");
        self.process = Some(process);
        let until = Instant::now() + PATIENCE;
        let answers = || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
                && self
                    .client("psql")
                    .args(["-c", "SELECT 1", "postgres"])
                    .output()
                    .is_ok_and(|did| did.status.success())
        };
        while !answers() {
            assert!(Instant::now() < until, "PostgreSQL does not answer: {}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops every process of it where it stands: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.signal_all("STOP");
    }

    /// From now on nobody is let in over the network but by TLS, with this certificate and key (PEM).
    ///
    /// # Panics
    ///
    /// If it does not start again with them.
    pub fn require_tls(&mut self, certificate: &str, key: &str) {
        let data = self.data();
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = data.join(name);
            fs::write(&path, text).expect("a file of the server");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a file of its own");
            if is_root() {
                let (user, group) = postgres_user();
                chown(&path, Some(user), Some(group)).expect("a file of that user");
            }
        }
        let rules = fs::read_to_string(data.join("pg_hba.conf")).expect("rules");
        fs::write(data.join("pg_hba.conf"), rules.replace("\nhost ", "\nhostssl ")).expect("rules");
        let settings = fs::read_to_string(data.join("postgresql.conf")).expect("settings");
        fs::write(data.join("postgresql.conf"), settings + "\nssl = on\n").expect("settings");
        self.restart();
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal_all("CONT");
    }

    fn signal_all(&self, name: &str) {
        let Some(process) = &self.process else { return };
        signal(process, name);
        let children = format!("/proc/{0}/task/{0}/children", process.id());
        for child in fs::read_to_string(children).unwrap_or_default().split_whitespace() {
            let _ = Command::new("kill").args([&format!("-{name}"), child]).stderr(Stdio::null()).status();
        }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A server program, which refuses to run as root.
    fn as_user(&self, program: &str) -> Command {
        let path = self.programs.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(path);
            command
        } else {
            Command::new(path)
        };
        command.current_dir(self.folder.path()).env("LC_ALL", "C");
        command
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.arg("-h").arg(self.folder.path()).args(["-p", &self.port.to_string(), "-U", USER]);
        command.stdin(Stdio::null());
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Also if it was frozen.
            signal(&process, "CONT");
            signal(&process, "QUIT");
            let _ = process.wait();
        }
    }
}

fn signal(process: &Child, name: &str) {
    let _ = Command::new("kill").args([&format!("-{name}"), &process.id().to_string()]).stderr(Stdio::null()).status();
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;

    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Numbers of the user that Debian's package makes, and of its group.
fn postgres_user() -> (u32, u32) {
    let users = fs::read_to_string(Path::new("/etc/passwd")).expect("a list of users");
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let mut fields = line.expect("a user postgres, as PostgreSQL does not run as root").split(':').skip(2);
    let mut number = || fields.next().and_then(|field| field.parse().ok()).expect("a number");
    (number(), number())
}
