//! A real nginx asks an agent about every request, by `auth_request`, as `docs/examples/nginx.conf` has it.

use std::process::Command;

use revocast_tests::process::{
    AUDIENCE, Minted, Mosquitto, Process, REALM, Site, Via, free_port, mint, tool, until_true,
};

/// An nginx of our own, on a port of its own.
struct Nginx {
    _process: Process,
    port: u16,
}

impl Nginx {
    /// Runs the example from the documents with other ports and folders.
    fn start(site: &Site, agent: &str) -> Self {
        let port = free_port();
        let behind = free_port();
        let folder = site.text("nginx");
        std::fs::create_dir_all(&folder).expect("a folder");
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/nginx.conf");
        let example = std::fs::read_to_string(example).expect("the example");
        let agent = agent.strip_prefix("http://").expect("an address");
        let config = example
            .replace("listen 443 ssl;", &format!("listen 127.0.0.1:{port};"))
            .replace("ssl_certificate", "# ssl_certificate")
            .replace("127.0.0.1:8181", agent)
            .replace("127.0.0.1:9000", &format!("127.0.0.1:{behind}"));
        assert!(config.contains(&format!("listen 127.0.0.1:{port}")) && config.contains(agent), "{config}");
        // The service behind repeats what it is told of the token.
        let config = format!(
            "daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n\
             events {{}}\n\
             http {{\n\
             access_log off;\n\
             client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;\n\
             uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
             {config}\n\
             server {{ listen 127.0.0.1:{behind}; location / {{\n\
             return 200 \"jti=$http_x_revocast_jti sub=$http_x_revocast_subject auth=$http_authorization\"; }} }}\n\
             }}\n"
        );
        let path = site.write("nginx/nginx.conf", config);
        let mut command = Command::new(tool("REVOCAST_NGINX"));
        let process = Process::start("nginx", command.args(["-p", &folder, "-c", &path]));
        until_true("nginx listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { _process: process, port }
    }

    /// Status, `WWW-Authenticate`, body.
    fn get(&self, path: &str, headers: &[(&str, &str)]) -> (u16, String, String) {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut request = agent.get(format!("http://127.0.0.1:{}{path}", self.port));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut answer = request.call().expect("an answer of nginx");
        let told = answer.headers().get("www-authenticate").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let told = told.to_owned();
        (answer.status().as_u16(), told, answer.body_mut().read_to_string().expect("a body"))
    }
}

fn bearer(token: &Minted) -> String {
    format!("Bearer {}", token.token)
}

#[test]
fn nginx_lets_in_who_has_a_good_token_and_nobody_else() {
    let (site, mosquitto) = (Site::new(), Mosquitto::start());
    let server = site.found(Via::Broker(&mosquitto.url()));
    let (tokens, jwks) = mint(&site, 8);
    let agent = site.agent_with("door", &mosquitto.url(), &["--jwks", &jwks, "--audience", AUDIENCE]);
    agent.wait_until_at(0);
    let nginx = Nginx::start(&site, agent.url());

    for token in &tokens[..4] {
        // What a caller says of itself is not passed on.
        let headers =
            [("authorization", &*bearer(token)), ("x-revocast-jti", "forged"), ("x-revocast-subject", "admin")];
        let (status, _, body) = nginx.get("/things", &headers);
        assert_eq!(status, 200, "{}: {body}", token.alg);
        assert!(body.starts_with(&format!("jti={} ", token.jti)), "{body}");
        assert!(!body.contains("admin") && !body.contains("forged"), "{body}");
    }

    let (status, told, body) = nginx.get("/things", &[]);
    assert_eq!((status, &*told), (401, r#"Bearer realm="revocast""#), "{body}");
    let (status, told, _) = nginx.get("/things", &[("authorization", "Bearer x.y.z")]);
    assert_eq!(status, 401);
    assert!(told.contains(r#"error="invalid_token""#), "{told}");
    let twice = [("authorization", &*bearer(&tokens[0])), ("authorization", &*bearer(&tokens[1]))];
    assert_ne!(nginx.get("/things", &twice).0, 200);
    // Nobody gives these tokens a scope.
    assert_eq!(nginx.get("/admin/things", &[("authorization", &bearer(&tokens[0]))]).0, 403);
    // The place that nginx asks is not for callers.
    assert_eq!(nginx.get("/_revocast", &[("authorization", &bearer(&tokens[0]))]).0, 404);

    let token = &tokens[0];
    let _ = server.command(&["revoke", "--realm", REALM, "--token", &token.token]).ok();
    until_true("nginx refuses it", || nginx.get("/things", &[("authorization", &bearer(token))]).0 == 401);
    let (_, told, _) = nginx.get("/things", &[("authorization", &bearer(token))]);
    assert!(told.contains("the token is revoked"), "{told}");
    assert_eq!(nginx.get("/things", &[("authorization", &bearer(&tokens[1]))]).0, 200);

    // Without an agent nobody comes in.
    drop(agent);
    assert_eq!(nginx.get("/things", &[("authorization", &bearer(&tokens[1]))]).0, 500);
}
