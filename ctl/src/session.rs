//! What every command is given: its options, its printer, and clients made from them.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use kv_client::srv::{Resolver, client_endpoints};
use kv_client::{Client, Config, Credentials, Tls};

use crate::{
    cli::Global,
    command::user,
    exit::{self, Exit, Failure, Result},
    printer::{Answer, Form, Printed},
};

/// The limit of a command without `--command-timeout`, of etcdctl.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// The options of one run.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    global: Global,
    form: Form,
}

impl Session {
    /// Checks the options that need no server, and takes the endpoints that `--discovery-srv` names in place of
    /// `--endpoints`. Errors: an unknown output form, a domain that names none.
    pub(crate) async fn new(mut global: Global) -> Result<Session> {
        let form = global.form()?;
        if !global.discovery_srv.is_empty() {
            global.endpoints = discovered(&global).await?;
        }
        Ok(Session { global, form })
    }

    /// The options as given.
    pub(crate) fn global(&self) -> &Global {
        &self.global
    }

    /// The chosen output form.
    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// A client of all endpoints whose calls end after `--command-timeout`.
    pub(crate) async fn client(&self) -> Result<Client> {
        connect(self.config()?).await
    }

    /// A client whose calls wait for ever, for commands that etcdctl gives no timeout.
    pub(crate) async fn patient_client(&self) -> Result<Client> {
        connect(Config {
            request_timeout: None,
            ..self.config()?
        })
        .await
    }

    /// A client of one endpoint.
    pub(crate) async fn client_of(&self, endpoint: &str) -> Result<Client> {
        connect(Config {
            endpoints: vec![endpoint.to_owned()],
            ..self.config()?
        })
        .await
    }

    fn config(&self) -> Result<Config> {
        let global = &self.global;
        let mut endpoints: Vec<String> = global
            .endpoints
            .iter()
            .map(|e| e.trim().to_owned())
            .collect();
        endpoints.retain(|e| !e.is_empty());
        let defaults = Config::new(endpoints);
        let at_most = |bytes: i64, default: usize| match usize::try_from(bytes) {
            Ok(bytes) if bytes > 0 => bytes,
            _ => default,
        };
        Ok(Config {
            connect_timeout: global.dial_timeout,
            request_timeout: Some(global.command_timeout.unwrap_or(COMMAND_TIMEOUT)),
            keep_alive_interval: global.keepalive_time,
            keep_alive_timeout: global.keepalive_timeout,
            request_bytes_max: at_most(global.max_request_bytes, defaults.request_bytes_max),
            response_bytes_max: at_most(global.max_recv_bytes, defaults.response_bytes_max),
            tls: self.tls()?,
            credentials: self.credentials()?,
            ..defaults
        })
    }

    fn tls(&self) -> Result<Option<Tls>> {
        let global = &self.global;
        for (flag, path) in [
            ("cert", &global.cert),
            ("key", &global.key),
            ("cacert", &global.cacert),
        ] {
            if path.as_ref().is_some_and(|p| p.as_os_str().is_empty()) {
                return Err(Failure::bad_args(format!(
                    "empty string is passed to --{flag} option"
                )));
            }
        }
        let given = global.cert.is_some() || global.key.is_some() || global.cacert.is_some();
        let wanted = given || !global.insecure_transport || global.insecure_skip_tls_verify;
        Ok(wanted.then(|| Tls {
            ca_file: global.cacert.clone(),
            cert_file: global.cert.clone(),
            key_file: global.key.clone(),
            skip_verify: global.insecure_skip_tls_verify,
        }))
    }

    fn credentials(&self) -> Result<Option<Credentials>> {
        let global = &self.global;
        if !global.auth_jwt_token.is_empty() {
            return Ok(Some(Credentials::Token(global.auth_jwt_token.clone())));
        }
        if global.user.is_empty() {
            return Ok(None);
        }
        let mut asked = None;
        let (user, password) = match (global.password.as_str(), global.user.split_once(':')) {
            ("", Some((user, password))) => (user, password),
            ("", None) => (global.user.as_str(), asked.insert(ask_password()?).as_str()),
            (password, _) => (global.user.as_str(), password),
        };
        Ok(Some(Credentials::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        }))
    }

    /// Prints an answer in the chosen form. Errors: the form does not exist for this answer.
    pub(crate) fn print(&self, answer: &Answer<'_>) -> Result<()> {
        let printed = self.form.print(answer, self.global.hex)?;
        let Printed { out, err } = printed;
        // As in `exit::tell`.
        let _ = io::stderr().write_all(&err);
        write_out(&out)
    }
}

/// Writes all of `bytes` to standard output at once, so that answers of several tasks do not mix.
pub(crate) fn write_out(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    Ok(stdout.flush()?)
}

/// The password of `--user`, typed on a terminal.
fn ask_password() -> Result<String> {
    if !io::stdin().is_terminal() {
        let message = "the password is missing: give --user=name:password or --password";
        return Err(Failure::bad_args(message));
    }
    user::ask("Password: ")
}

async fn connect(config: Config) -> Result<Client> {
    Client::connect(config).await.map_err(|error| {
        let exit = match error {
            kv_client::Error::Tls { .. } | kv_client::Error::TlsRefused(_) => Exit::BadArgs,
            _ => Exit::BadConnection,
        };
        Failure::new(exit, exit::describe(&error))
    })
}

/// The endpoints that the SRV records of `--discovery-srv` name; those without TLS only if `--insecure-discovery` allows it.
async fn discovered(global: &Global) -> Result<Vec<String>> {
    let failed = |error: kv_client::Error| Failure::new(Exit::Error, exit::describe(&error));
    let resolver = Resolver::new(None).map_err(failed)?;
    let (domain, suffix) = (&global.discovery_srv, &global.discovery_srv_name);
    let found = client_endpoints(&resolver, domain, suffix, global.insecure_discovery);
    found.await.map_err(failed)
}
