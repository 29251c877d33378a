//! Real processes: the binary, a broker, foreign tokens, and a line that can be slowed down.
//!
//! Everything listens on free ports of its own and ends by its own process id when it is dropped. What
//! a process said on standard error is printed when a test fails. Whatever is not there in time ends
//! the test with a panic: that is how a test fails.

#![expect(clippy::missing_panics_doc, reason = "every function in here panics when a test has to end")]
#![expect(clippy::must_use_candidate, reason = "some are called for what they insist on")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rumqttc::{Client, Connection, Event, MqttOptions, Outgoing, Packet, QoS};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::strace::Beside;

/// The realm of every site.
pub const REALM: &str = "fleet";

/// Its issuer.
pub const ISSUER: &str = "https://issuer.example";

/// For whom its tokens are.
pub const AUDIENCE: &str = "https://api.example";

/// Longest wait for anything that should happen by itself, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Pause between two looks at something that should happen by itself.
const POLL: Duration = Duration::from_millis(15);

/// Larger than anything that a broker delivers in these tests.
const PACKET_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Waits until `probe` finds something.
#[track_caller]
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {} s", PATIENCE.as_secs());
        thread::sleep(POLL);
    }
}

/// Waits until something is true.
#[track_caller]
pub fn until_true(what: &str, mut probe: impl FnMut() -> bool) {
    until(what, || probe().then_some(()));
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A program that `tests/run` provides.
#[must_use]
pub fn tool(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => {
            panic!("{variable} is not set; run the tests with tests/run, which installs what they need and sets it")
        }
    }
}

/// The binary, called in a way that no setting of whoever runs the tests changes.
fn binary() -> Command {
    undisturbed(Command::new(tool("REVOCAST_BIN")))
}

fn undisturbed(mut command: Command) -> Command {
    command.env_remove("RUST_BACKTRACE");
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("REVOCAST_") {
            command.env_remove(variable);
        }
    }
    command
}

/// The binary with variables of its own.
#[must_use]
pub fn configured(variables: &[(&str, &str)]) -> Command {
    let mut command = binary();
    command.envs(variables.iter().copied());
    command
}

// ---- processes that run ---------------------------------------------------------------------------

/// A process that runs until it is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    input: Option<ChildStdin>,
    log: Arc<Mutex<String>>,
    lines: mpsc::Receiver<String>,
}

impl Process {
    /// Starts it, with its output kept.
    #[must_use]
    pub fn start(name: &str, command: &mut Command) -> Self {
        Self::spawn(name, command.stdin(Stdio::null()))
    }

    /// The same, and it can be spoken to.
    #[must_use]
    pub fn start_listening(name: &str, command: &mut Command) -> Self {
        Self::spawn(name, command.stdin(Stdio::piped()))
    }

    fn spawn(name: &str, command: &mut Command) -> Self {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let log = Arc::new(Mutex::new(String::new()));
        let (told, lines) = mpsc::channel();
        let (input, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        if let Some(stdout) = stdout {
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    // Nobody listens any more; the pipe is still emptied.
                    let _ = told.send(line);
                }
            });
        }
        if let Some(stderr) = stderr {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line);
                    let _ = writeln!(log.lock().unwrap_or_else(PoisonError::into_inner), "{line}");
                }
            });
        }
        Self { name: name.to_owned(), child, ended: None, input, log, lines }
    }

    /// Gives it a line on standard input, and waits for the next one on standard output.
    #[must_use]
    pub fn answer(&mut self, line: &str) -> String {
        let input = self.input.as_mut().expect("it can be spoken to");
        writeln!(input, "{line}").expect("it listens");
        self.line().expect("an answer")
    }

    /// The next line on standard output; `None` if it ended without one.
    #[must_use]
    pub fn line(&self) -> Option<String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(mpsc::RecvTimeoutError::Disconnected) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("{} said nothing; its log:\n{}", self.name, self.log()),
        }
    }

    /// What it said on standard error.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be asked for");
        }
        self.ended.is_none()
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal by name, such as STOP or CONT.
    pub fn signal(&self, signal: &str) {
        // An id that was waited for may belong to somebody else by now.
        assert!(self.ended.is_none(), "{} has ended already", self.name);
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.id().to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "{} cannot be sent {signal}", self.name);
    }

    /// Ends it as a power cut would (SIGKILL), and waits until it is gone.
    pub fn kill(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            self.ended = self.child.wait().ok();
        }
    }

    /// Asks it to end (SIGTERM), and waits until it has.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let name = self.name.clone();
        until(&format!("{name} ends"), || (!self.is_running()).then_some(self.ended).flatten())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let log = self.log();
        if thread::panicking() {
            // Enough to see what happened, not enough to drown it.
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!("---- {} said, at last ----\n{}", self.name, tail.join("\n"));
        } else {
            assert!(!log.contains("panicked at"), "{} panicked:\n{log}", self.name);
        }
    }
}

/// What a call of the binary came to.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Insists on success.
    #[must_use]
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// The last line of standard output, as JSON.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> Value {
        self.objects().pop().unwrap_or_else(|| panic!("nothing on standard output: {self:?}"))
    }

    /// All lines of standard output, as JSON.
    #[must_use]
    #[track_caller]
    pub fn objects(&self) -> Vec<Value> {
        let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        self.stdout.lines().filter(|line| !line.is_empty()).map(parse).collect()
    }

    /// Insists on a failure of this kind: its exit code, a word that names the cause, and no more than a
    /// few lines for people.
    #[track_caller]
    pub fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not said: {self:?}");
        }
    }
}

/// Runs the binary to its end.
#[track_caller]
pub fn revocast<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    revocast_with(arguments, b"")
}

/// The same, with something on standard input.
#[track_caller]
pub fn revocast_with<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>, input: &[u8]) -> Ran {
    let mut command = binary();
    command.args(arguments);
    let ran = run(&mut command, input);
    for sign in ["panicked at", "stack backtrace", "RUST_BACKTRACE"] {
        assert!(!ran.stderr.contains(sign), "{command:?}: {ran:?}");
    }
    ran
}

fn run(command: &mut Command, input: &[u8]) -> Ran {
    let text = format!("{command:?}");
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{text} cannot be started: {error}"));
    let input = input.to_vec();
    let stdin = child.stdin.take();
    let writer = thread::spawn(move || {
        if let Some(mut stdin) = stdin {
            // It may end before it has read everything.
            let _ = stdin.write_all(&input);
        }
    });
    let (mut stdout, mut stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let out = thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stdout.read_to_end(&mut bytes);
        bytes
    });
    let err = thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stderr.read_to_end(&mut bytes);
        bytes
    });
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be asked for") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{text} did not end within {} s", PATIENCE.as_secs());
        }
        thread::sleep(Duration::from_millis(2));
    };
    let _ = writer.join();
    let text = |bytes: thread::Result<Vec<u8>>| String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
    Ran { code: status.code().unwrap_or(-1), stdout: text(out.join()), stderr: text(err.join()) }
}

// ---- HTTP -----------------------------------------------------------------------------------------

/// Asks an HTTP server; a failure to get any answer is told in words.
pub fn ask(method: &str, url: &str, token: Option<&str>, body: &[u8]) -> Result<(u16, Value), String> {
    let agent =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE)).build().new_agent();
    let authorization = token.map(|token| format!("Bearer {token}"));
    let sent = if method == "GET" {
        let mut request = agent.get(url);
        if let Some(authorization) = &authorization {
            request = request.header("authorization", authorization);
        }
        request.call()
    } else {
        let mut request = agent.post(url).header("content-type", "application/json");
        if let Some(authorization) = &authorization {
            request = request.header("authorization", authorization);
        }
        request.send(body)
    };
    let mut response = sent.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let text = response.body_mut().read_to_string().map_err(|error| error.to_string())?;
    Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
}

// ---- brokers --------------------------------------------------------------------------------------

/// A port that was free a moment ago, for programs that cannot choose one themselves.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

/// A private Mosquitto that keeps nothing on disk.
#[derive(Debug)]
pub struct Mosquitto {
    process: Process,
    folder: TempDir,
    port: u16,
    /// Lines of its configuration beside the usual ones.
    more: String,
    /// What earlier ones on this port said.
    before: String,
}

impl Mosquitto {
    /// Starts one on a free port.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// The same, with more lines in its configuration.
    #[must_use]
    pub fn start_with(more: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for _ in 0..10 {
            let port = free_port();
            if let Some(process) = Self::spawn(folder.path(), port, more) {
                return Self { process, folder, port, more: more.to_owned(), before: String::new() };
            }
        }
        panic!("mosquitto does not start on any of ten ports");
    }

    /// `None` if it ended at once: mostly somebody else took the port meanwhile.
    fn spawn(folder: &Path, port: u16, more: &str) -> Option<Process> {
        let path = folder.join("mosquitto.conf");
        let mut config = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_queued_messages 100000\n\
             persistence false\nlog_dest stderr\nlog_type all\nconnection_messages true\n"
        );
        config.push_str(more);
        // It gives up being root otherwise, and then cannot read a folder that only root may enter.
        if std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0) {
            config.push_str("user root\n");
        }
        std::fs::write(&path, config).expect("a configuration");
        let mut command = Command::new(tool("REVOCAST_MOSQUITTO"));
        let mut process = Process::start("mosquitto", command.arg("-c").arg(path));
        let up = until("mosquitto listens, or ends", || {
            let listens = TcpStream::connect(("127.0.0.1", port)).is_ok();
            (listens || !process.is_running()).then_some(listens)
        });
        // What answered may be whoever took the port.
        (up && process.is_running()).then_some(process)
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// The same, as an address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// SIGKILL: everything retained is lost, and all sessions.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts again on the same port, knowing nothing.
    pub fn restart(&mut self) {
        self.process.kill();
        self.before.push_str(&self.process.log());
        let (folder, port, more) = (self.folder.path(), self.port, &self.more);
        self.process = until("mosquitto starts again on its port", || Self::spawn(folder, port, more));
    }

    /// Lets it read its configuration, and the files that names, again.
    pub fn reload(&self) {
        self.process.signal("HUP");
    }

    /// Stops it in its tracks: connections stand, nothing is answered.
    pub fn freeze(&self) {
        self.process.signal("STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.process.signal("CONT");
    }

    /// How often a client of this name has connected.
    #[must_use]
    pub fn connects(&self, client_id: &str) -> usize {
        self.connects_where(|name| name == client_id)
    }

    /// How often clients with such names have connected.
    #[must_use]
    pub fn connects_where(&self, is_meant: impl Fn(&str) -> bool) -> usize {
        let log = format!("{}{}", self.before, self.process.log());
        let names = log.lines().filter(|line| line.contains("New client connected")).filter_map(|line| {
            let (_, after) = line.split_once(" as ")?;
            after.split_once(" (").map(|(name, _)| name)
        });
        names.filter(|name| is_meant(name)).count()
    }
}

fn client(url: &str, name: &str) -> (Client, Connection) {
    let address = url.strip_prefix("mqtt://").expect("an mqtt URL");
    let (host, port) = address.rsplit_once(':').expect("a port");
    let mut options = MqttOptions::new(name, host, port.parse().expect("a number"));
    options.set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    Client::new(options, 64)
}

/// Publishes as somebody else than the server, and waits for the acknowledgement.
pub fn publish(url: &str, topic: &str, payload: Vec<u8>, retain: bool) {
    let (client, mut connection) = client(url, "somebody");
    client.publish(topic, QoS::AtLeastOnce, retain, payload).expect("room in the queue");
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match connection.recv_timeout(Duration::from_secs(1)) {
            Ok(Ok(Event::Incoming(Packet::PubAck(_)))) => return,
            Ok(Err(error)) => panic!("publishing to {topic}: {error}"),
            Ok(Ok(_)) | Err(_) => {}
        }
    }
    panic!("publishing to {topic} was not acknowledged");
}

/// Somebody who sends much and waits for nothing.
#[expect(missing_debug_implementations, reason = "the MQTT client has none")]
pub struct Somebody(Client);

impl Somebody {
    /// Connects.
    #[must_use]
    pub fn new(url: &str) -> Self {
        let (client, mut connection) = client(url, &format!("somebody-{}", free_port()));
        thread::spawn(move || while connection.recv().is_ok_and(|event| event.is_ok()) {});
        Self(client)
    }

    /// Sends what is not retained, as devices do (`QoS` 1).
    pub fn publish(&self, topic: &str, payload: Vec<u8>) {
        self.0.publish(topic, QoS::AtLeastOnce, false, payload).expect("a connection");
    }
}

impl Drop for Somebody {
    fn drop(&mut self) {
        let _ = self.0.disconnect();
    }
}

/// Topics and payloads, in the order in which they came.
pub type Heard = Vec<(String, Vec<u8>)>;

/// Somebody who listens and remembers.
#[expect(missing_debug_implementations, reason = "the MQTT client has none")]
pub struct Listener {
    heard: Arc<Mutex<Heard>>,
    client: Client,
}

impl Listener {
    /// Listens to a filter; when this returns, nothing more is missed.
    #[must_use]
    pub fn start(url: &str, filter: &str) -> Self {
        // A thousand of them shall not push each other out.
        static LISTENERS: AtomicU64 = AtomicU64::new(0);
        let name = format!("listener-{}-{}", std::process::id(), LISTENERS.fetch_add(1, Ordering::Relaxed));
        let (client, mut connection) = client(url, &name);
        client.subscribe(filter, QoS::AtLeastOnce).expect("room in the queue");
        let heard = Arc::new(Mutex::new(Heard::new()));
        let (ready, standing) = mpsc::channel();
        let list = Arc::clone(&heard);
        thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::SubAck(_))) => {
                        let _ = ready.send(());
                    }
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
                        list.push((publish.topic, publish.payload.to_vec()));
                    }
                    Ok(Event::Outgoing(Outgoing::Disconnect)) | Err(_) => return,
                    Ok(_) => {}
                }
            }
        });
        standing.recv_timeout(PATIENCE).expect("a subscription");
        Self { heard, client }
    }

    /// Everything heard so far, in order.
    #[must_use]
    pub fn heard(&self) -> Heard {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The last of what was heard on topics that contain this, once there is something.
    #[must_use]
    #[track_caller]
    pub fn wait_for(&self, part: &str) -> Vec<u8> {
        until(&format!("something on {part}"), || {
            let heard = self.heard();
            heard
                .into_iter()
                .rev()
                .find(|(topic, bytes)| topic.contains(part) && !bytes.is_empty())
                .map(|(_, bytes)| bytes)
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.client.disconnect();
    }
}

// ---- a line that can be slowed down ---------------------------------------------------------------

/// Passes connections on to a broker, and of what the broker sends only as much as is allowed.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    allowed: Arc<AtomicU64>,
    passed: Arc<AtomicU64>,
    closed: Arc<AtomicBool>,
}

impl Line {
    /// A line to this address on which nothing comes back yet.
    #[must_use]
    pub fn to(broker: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let line = Self {
            address: listener.local_addr().expect("an address"),
            allowed: Arc::default(),
            passed: Arc::default(),
            closed: Arc::default(),
        };
        let (allowed, passed, closed) = (Arc::clone(&line.allowed), Arc::clone(&line.passed), Arc::clone(&line.closed));
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if closed.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(far) = TcpStream::connect(broker) else { continue };
                let (Ok(near_in), Ok(far_out)) = (near.try_clone(), far.try_clone()) else {
                    continue;
                };
                thread::spawn(move || copy(near_in, far_out));
                let (allowed, passed, closed) = (Arc::clone(&allowed), Arc::clone(&passed), Arc::clone(&closed));
                thread::spawn(move || trickle(far, near, &allowed, &passed, &closed));
            }
        });
        line
    }

    /// Where it begins.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// Lets so many more bytes come back.
    pub fn allow(&self, bytes: u64) {
        self.allowed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How many have come back.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Waits until all that is allowed has come back.
    pub fn wait_until_used_up(&self) {
        until_true("the line is used up", || self.passed() >= self.allowed.load(Ordering::Relaxed));
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        // Wakes the one who accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Both);
}

fn trickle(mut from: TcpStream, mut to: TcpStream, allowed: &AtomicU64, passed: &AtomicU64, closed: &AtomicBool) {
    let _ = from.set_nodelay(true);
    let _ = to.set_nodelay(true);
    let mut buffer = [0; 512];
    while !closed.load(Ordering::Relaxed) {
        let left = allowed.load(Ordering::Relaxed).saturating_sub(passed.load(Ordering::Relaxed));
        if left == 0 {
            thread::sleep(Duration::from_millis(2));
            continue;
        }
        let room = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let Some(part) = buffer.get_mut(..room) else { return };
        let Ok(read @ 1..) = from.read(part) else { break };
        if part.get(..read).is_none_or(|part| to.write_all(part).is_err()) {
            break;
        }
        passed.fetch_add(read as u64, Ordering::Relaxed);
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

// ---- server and agents ----------------------------------------------------------------------------

/// A folder with keys, and all that servers and agents of one realm keep.
#[derive(Debug)]
pub struct Site {
    folder: TempDir,
}

/// Which broker a server uses.
#[derive(Clone, Copy, Debug)]
pub enum Via<'a> {
    /// The one inside it.
    Embedded,
    /// One that runs elsewhere, by its URL.
    Broker(&'a str),
}

impl Default for Site {
    fn default() -> Self {
        Self::new()
    }
}

impl Site {
    /// Makes the folder, and keys by `revocast keygen`.
    #[must_use]
    pub fn new() -> Self {
        let site = Self { folder: tempfile::tempdir().expect("a temporary folder") };
        let _ = revocast(["keygen", "--out", &site.text("data/keys")]).ok();
        site
    }

    /// A path in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same, as text.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The trust file.
    #[must_use]
    pub fn trust(&self) -> String {
        self.text("data/keys/trust.json")
    }

    /// Writes a file into it.
    #[must_use]
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), text).expect("a file");
        self.text(name)
    }

    /// Starts a server on any free ports.
    #[must_use]
    pub fn serve(&self, via: Via<'_>) -> Server {
        self.serve_with(via, &[])
    }

    /// The same, with more arguments.
    #[must_use]
    pub fn serve_with(&self, via: Via<'_>, more: &[&str]) -> Server {
        let mut server = self.server(via, more);
        server.start();
        server
    }

    /// A server that is not started yet.
    #[must_use]
    pub fn server(&self, via: Via<'_>, more: &[&str]) -> Server {
        self.prepare("data", via, more)
    }

    fn prepare(&self, folder: &str, via: Via<'_>, more: &[&str]) -> Server {
        Server {
            process: None,
            data: self.text(folder),
            api: "127.0.0.1:0".to_owned(),
            broker: match via {
                Via::Embedded => "127.0.0.1:0".to_owned(),
                Via::Broker(url) => url.to_owned(),
            },
            embedded: matches!(via, Via::Embedded),
            more: more.iter().map(|&argument| argument.to_owned()).collect(),
            token: std::fs::read_to_string(self.path("data/keys/admin.token")).expect("a token").trim().to_owned(),
        }
    }

    /// Starts another server with the same keys, which keeps what is its own in a folder of its own.
    #[must_use]
    pub fn serve_beside(&self, folder: &str, via: Via<'_>, more: &[&str]) -> Server {
        let keys = self.text("data/keys");
        let mut server = self.prepare(folder, via, more);
        server.more.extend(["--keys".to_owned(), keys]);
        server.start();
        server
    }

    /// Starts a server and founds the realm.
    #[must_use]
    pub fn found(&self, via: Via<'_>) -> Server {
        self.found_with(via, &[])
    }

    /// The same, with more arguments.
    #[must_use]
    pub fn found_with(&self, via: Via<'_>, more: &[&str]) -> Server {
        let server = self.serve_with(via, more);
        let _ = server.command(&["realm", "create", REALM, "--issuer", ISSUER]).ok();
        server
    }

    /// Starts an agent on any free port.
    #[must_use]
    pub fn agent(&self, name: &str, broker: &str) -> Agent {
        self.agent_with(name, broker, &[])
    }

    /// The same, with more arguments. Its name is that of its state folder and its client id.
    #[must_use]
    pub fn agent_with(&self, name: &str, broker: &str, more: &[&str]) -> Agent {
        let (state, trust) = (self.text(name), self.trust());
        let mut arguments: Vec<String> = [
            "--json",
            "agent",
            "--broker",
            broker,
            "--realm",
            REALM,
            "--state",
            &state,
            "--listen",
            "127.0.0.1:0",
            "--epoch-jitter",
            "1",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        for (flag, usual) in [("--client-id", name), ("--trust", &trust)] {
            if !more.contains(&flag) {
                arguments.extend([flag.to_owned(), usual.to_owned()]);
            }
        }
        let mut agent = Agent { name: name.to_owned(), arguments, process: None, url: String::new() };
        agent.start();
        agent
    }
}

/// A running `revocast serve`.
#[derive(Debug)]
pub struct Server {
    process: Option<Process>,
    data: String,
    api: String,
    broker: String,
    embedded: bool,
    more: Vec<String>,
    token: String,
}

impl Server {
    /// Keeps its ledger somewhere else than in the site's folder. The keys stay where they are.
    pub fn keep_data_in(&mut self, folder: &Path) {
        self.data = folder.display().to_string();
    }

    /// Starts it, the second time on the ports it had.
    pub fn start(&mut self) {
        assert!(self.launch(binary()), "the server ended:\n{}", self.process().log());
    }

    /// The same with `strace` beside it; false if it ended before it served.
    pub fn start_beside(&mut self, strace: &Beside) -> bool {
        let mut command = undisturbed(strace.command());
        command.arg(tool("REVOCAST_BIN"));
        self.launch(command)
    }

    fn launch(&mut self, mut command: Command) -> bool {
        command.args(["--json", "serve", "--data", &self.data, "--listen", &self.api]);
        command.args([if self.embedded { "--embedded-broker" } else { "--broker" }, &self.broker]);
        command.args(&self.more);
        let process = self.process.insert(Process::start("server", &mut command));
        let Some(line) = process.line() else { return false };
        let told: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        let address = |name: &str| told.get(name).and_then(Value::as_str).and_then(|url| url.split_once("://"));
        address("api").expect("the address of the API").1.clone_into(&mut self.api);
        if self.embedded {
            address("broker").expect("the address of the broker").1.clone_into(&mut self.broker);
        }
        true
    }

    /// The process.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    /// Its process id.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process().kill();
    }

    /// SIGKILL, and started again.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.start();
    }

    /// Where its API is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.api)
    }

    /// Where its broker is.
    #[must_use]
    pub fn broker(&self) -> String {
        if self.embedded { format!("mqtt://{}", self.broker) } else { self.broker.clone() }
    }

    /// The bearer token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Runs an administrative command against it.
    #[track_caller]
    pub fn command(&self, arguments: &[&str]) -> Ran {
        let (url, file) = (self.url(), format!("{}/keys/admin.token", self.data));
        revocast(arguments.iter().copied().chain(["--server", &url, "--admin-token-file", &file]))
    }

    /// Asks its API.
    pub fn get(&self, path: &str) -> Result<(u16, Value), String> {
        ask("GET", &format!("{}{path}", self.url()), Some(&self.token), b"")
    }

    /// Asks its API for something that is granted.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> Value {
        match self.try_post(path, body) {
            Ok((200 | 201, answer)) => answer,
            other => panic!("{path}: {other:?}"),
        }
    }

    /// Asks its API for something that may fail.
    pub fn try_post(&self, path: &str, body: &Value) -> Result<(u16, Value), String> {
        ask("POST", &format!("{}{path}", self.url()), Some(&self.token), body.to_string().as_bytes())
    }

    /// Revokes a token; returns its sequence.
    #[track_caller]
    pub fn revoke(&self, jti: &str, exp: u64) -> u64 {
        number(&self.post(&format!("/v1/realms/{REALM}/revocations"), &json!({ "jti": jti, "exp": exp })), "sequence")
    }

    /// Revokes many; returns the receipts.
    #[track_caller]
    pub fn revoke_all<'a>(&self, jtis: impl IntoIterator<Item = &'a String>, exp: u64) -> Vec<Value> {
        let list: Vec<Value> = jtis.into_iter().map(|jti| json!({ "jti": jti, "exp": exp })).collect();
        let mut receipts = Vec::new();
        for part in list.chunks(5_000) {
            let path = format!("/v1/realms/{REALM}/revocations/batch");
            let answer = self.post(&path, &json!({ "revocations": part }));
            receipts.extend(answer.get("receipts").and_then(Value::as_array).cloned().unwrap_or_default());
        }
        receipts
    }

    /// The realm in its status.
    #[must_use]
    #[track_caller]
    pub fn realm(&self) -> Value {
        let (_, status) = self.get("/v1/status").expect("a status");
        let realm = status.pointer("/realms/0").cloned();
        realm.unwrap_or_else(|| panic!("no realm: {status}"))
    }

    /// The last sequence of its ledger.
    #[must_use]
    #[track_caller]
    pub fn head(&self) -> u64 {
        number(&self.realm(), "head")
    }

    /// Waits until all that its ledger holds is published.
    #[track_caller]
    pub fn wait_until_published(&self) -> Value {
        until("everything is published", || {
            let realm = self.realm();
            let published = realm.get("published").filter(|published| !published.is_null()).cloned()?;
            (number(&published, "epoch") > 0 && number(&published, "sequence") >= number(&realm, "head"))
                .then_some(published)
        })
    }
}

/// A running `revocast agent`.
#[derive(Debug)]
pub struct Agent {
    name: String,
    arguments: Vec<String>,
    process: Option<Process>,
    url: String,
}

impl Agent {
    /// Starts it (again).
    pub fn start(&mut self) {
        let mut command = binary();
        command.args(&self.arguments);
        let process = Process::start(&format!("agent {}", self.name), &mut command);
        let Some(line) = process.line() else { panic!("{} ended:\n{}", self.name, process.log()) };
        let told: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
        told.get("listen").and_then(Value::as_str).expect("an address").clone_into(&mut self.url);
        self.process = Some(process);
    }

    /// Follows another broker when it is started again.
    pub fn move_to(&mut self, broker: &str) {
        let place = self.arguments.iter().position(|argument| argument == "--broker").expect("a broker");
        broker.clone_into(self.arguments.get_mut(place + 1).expect("its URL"));
    }

    /// The process.
    #[must_use]
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    /// Where it answers.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process().kill();
    }

    /// What it says of a token.
    #[must_use]
    #[track_caller]
    pub fn check(&self, jti: &str, exp: u64) -> Value {
        let answer = ask("GET", &format!("{}/check?jti={jti}&exp={exp}", self.url), None, b"");
        match answer {
            Ok((200, answer)) => answer,
            other => panic!("{}: {other:?}", self.name),
        }
    }

    /// Its verdict on a token, by name.
    #[must_use]
    #[track_caller]
    pub fn verdict(&self, jti: &str, exp: u64) -> String {
        text(&self.check(jti, exp), "verdict")
    }

    /// What it says of a whole token.
    #[must_use]
    #[track_caller]
    pub fn verify(&self, token: &str) -> Value {
        match ask("POST", &format!("{}/verify", self.url), None, token.as_bytes()) {
            Ok((200, answer)) => answer,
            other => panic!("{}: {other:?}", self.name),
        }
    }

    /// How it is.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> Value {
        match ask("GET", &format!("{}/status", self.url), None, b"") {
            Ok((200, answer)) => answer,
            other => panic!("{}: {other:?}", self.name),
        }
    }

    /// Asks it something else.
    pub fn ask(&self, method: &str, path: &str, body: &[u8]) -> Result<(u16, Value), String> {
        ask(method, &format!("{}{path}", self.url), None, body)
    }

    /// Asks with headers, as a proxy does; gives the status and the headers of the answer.
    pub fn ask_as(&self, path: &str, headers: &[(&str, String)]) -> Result<(u16, BTreeMap<String, String>), String> {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        let mut request = agent.get(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let response = request.call().map_err(|error| error.to_string())?;
        let text = |value: &ureq::http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
        let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        Ok((response.status().as_u16(), headers))
    }

    /// Waits until it stands at `sequence` or beyond and believes what it has.
    #[track_caller]
    pub fn wait_until_at(&self, sequence: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if number(&status, "sequence") >= sequence && status.get("doubt").is_some_and(Value::is_null) {
                return;
            }
            assert!(Instant::now() < deadline, "{} does not reach {sequence}: {status}", self.name);
            thread::sleep(POLL);
        }
    }

    /// Waits until it says this of a token.
    #[track_caller]
    pub fn wait_until_says(&self, verdict: &str, jti: &str, exp: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.check(jti, exp);
            if text(&answer, "verdict") == verdict {
                return;
            }
            assert!(Instant::now() < deadline, "{} does not say {verdict}: {answer} {}", self.name, self.status());
            thread::sleep(POLL);
        }
    }

    /// How many of some tokens it does not refuse for being revoked.
    #[must_use]
    #[track_caller]
    pub fn missing<'a>(&self, jtis: impl IntoIterator<Item = &'a String>, exp: u64) -> Vec<&'a String> {
        jtis.into_iter().filter(|jti| self.verdict(jti, exp) != "revoked").collect()
    }
}

/// A number in an object; 0 if it is not there.
#[must_use]
pub fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or_default()
}

/// A text in an object; empty if it is not there.
#[must_use]
pub fn text(value: &Value, name: &str) -> String {
    value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

// ---- tokens that are not ours ---------------------------------------------------------------------

/// A token that `PyJWT` made.
#[derive(Clone, Debug)]
pub struct Minted {
    /// Its algorithm.
    pub alg: String,
    /// Its `jti`.
    pub jti: String,
    /// Its `iat`.
    pub iat: u64,
    /// Its `exp`.
    pub exp: u64,
    /// Its compact form.
    pub token: String,
}

/// Lets Python make tokens, valid for an hour, in HS256, RS256, ES256 and `EdDSA` by turns. Returns them
/// and the path of their key set.
#[must_use]
#[track_caller]
pub fn mint(site: &Site, count: usize) -> (Vec<Minted>, String) {
    mint_until(site, count, now() + 3_600)
}

/// The same, with another `exp`.
#[must_use]
#[track_caller]
pub fn mint_until(site: &Site, count: usize, exp: u64) -> (Vec<Minted>, String) {
    let folder = site.text("minted");
    let mut command = Command::new(tool("REVOCAST_PYTHON"));
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/mint/mint.py"));
    command.args(["--out", &folder, "--issuer", ISSUER, "--audience", AUDIENCE]);
    command.args(["--count", &count.to_string(), "--exp", &exp.to_string()]);
    let _ = run(&mut command, b"").ok();
    let lines = std::fs::read_to_string(site.path("minted/tokens.ndjson")).expect("tokens");
    let tokens = lines.lines().map(|line| {
        let token: Value = serde_json::from_str(line).expect("JSON");
        Minted {
            alg: text(&token, "alg"),
            jti: text(&token, "jti"),
            iat: number(&token, "iat"),
            exp: number(&token, "exp"),
            token: text(&token, "token"),
        }
    });
    (tokens.collect(), site.text("minted/jwks.json"))
}
