//! `cert`: the certificates of a cluster, without openssl.
//!
//! `cert create` makes, in one folder, an authority and a certificate for each member and client named. Run again
//! with more names it adds theirs under the same authority. Nothing that exists is overwritten unless it is asked for,
//! and the authority's key never: losing it only means to start anew.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::{
    exit::{Exit, Failure, Result},
    session::write_out,
};

const YEAR: Duration = Duration::from_secs(365 * 86_400);
/// Members and clients whose clocks are behind accept a certificate that was just made.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);
const AUTHORITY: &str = "ca";

/// The subcommands of `cert`.
#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// Makes an authority and the certificates of members and clients
    Create(CreateArgs),
}

/// Arguments of `cert create`.
#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    /// Where the files go; made if it does not exist
    #[arg(long, default_value = "certs")]
    dir: PathBuf,
    /// How long the certificates of members and clients are valid, in years; the authority is valid ten times as long
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    years: u32,
    /// A client certificate with this name; may be given several times
    #[arg(long = "client", value_name = "NAME")]
    clients: Vec<String>,
    /// Make the named certificates again although they exist; the authority stays
    #[arg(long)]
    renew: bool,
    /// A member: its name and the host names and addresses it is reached at
    #[arg(value_name = "NAME=HOST[,HOST...]")]
    members: Vec<String>,
}

/// A certificate to be made.
#[derive(Debug, PartialEq, Eq)]
struct Subject {
    name: String,
    /// Empty for a client.
    hosts: Vec<String>,
}

/// Runs a subcommand of `cert`.
pub(crate) fn run(command: &CertCommand) -> Result<()> {
    let CertCommand::Create(args) = command;
    let subjects = subjects(args)?;
    let mut made = String::new();
    create(args, &subjects, &mut made)?;
    write_out(made.as_bytes())
}

fn subjects(args: &CreateArgs) -> Result<Vec<Subject>> {
    let mut subjects = Vec::new();
    for member in &args.members {
        let Some((name, hosts)) = member
            .split_once('=')
            .filter(|(_, hosts)| !hosts.is_empty())
        else {
            return Err(Failure::bad_args(format!(
                "{member:?} is not NAME=HOST[,HOST...]; for a member n1 at 10.0.0.1 write n1=10.0.0.1"
            )));
        };
        let hosts = hosts.split(',').map(str::to_owned).collect();
        subjects.push(Subject {
            name: name.to_owned(),
            hosts,
        });
    }
    subjects.extend(args.clients.iter().map(|name| Subject {
        name: name.clone(),
        hosts: Vec::new(),
    }));
    if subjects.is_empty() {
        return Err(Failure::bad_args(
            "name at least one member (NAME=HOST) or client (--client=NAME)",
        ));
    }
    for (n, subject) in subjects.iter().enumerate() {
        let name = &subject.name;
        if name.is_empty() || name.contains('/') || name.starts_with('.') || name == AUTHORITY {
            return Err(Failure::bad_args(format!(
                "{name:?} cannot name a certificate: it becomes a file name, and \"ca\" is the authority"
            )));
        }
        if subjects[..n].iter().any(|other| other.name == *name) {
            return Err(Failure::bad_args(format!("{name:?} is named twice")));
        }
    }
    Ok(subjects)
}

fn create(args: &CreateArgs, subjects: &[Subject], made: &mut String) -> Result<()> {
    let dir = &args.dir;
    fs::create_dir_all(dir).map_err(|e| failed("make the folder", dir, &e))?;
    if !args.renew {
        // Before anything is written: all or nothing.
        for subject in subjects {
            let existing = certificate_of(dir, &subject.name);
            if existing.exists() {
                return Err(Failure::new(
                    Exit::Error,
                    format!(
                        "{} exists; leave {} out, or make it again with --renew",
                        existing.display(),
                        subject.name
                    ),
                ));
            }
        }
    }
    let authority = authority(dir, args.years, made)?;
    for subject in subjects {
        let key = KeyPair::generate().map_err(|e| cannot_make(&subject.name, &e))?;
        let certificate = params(subject, args.years)
            .and_then(|params| params.signed_by(&key, &authority))
            .map_err(|e| cannot_make(&subject.name, &e))?;
        write_new(&key_of(dir, &subject.name), &key.serialize_pem(), 0o600)?;
        write_new(
            &certificate_of(dir, &subject.name),
            &certificate.pem(),
            0o644,
        )?;
        let hosts = match &subject.hosts[..] {
            [] => "client".to_owned(),
            hosts => hosts.join(", "),
        };
        made.push_str(&format!(
            "{} and its key: {hosts}\n",
            certificate_of(dir, &subject.name).display()
        ));
    }
    Ok(())
}

/// The authority of the folder; made if there is none.
fn authority(dir: &Path, years: u32, made: &mut String) -> Result<Issuer<'static, KeyPair>> {
    let (certificate, key) = (certificate_of(dir, AUTHORITY), key_of(dir, AUTHORITY));
    if certificate.exists() {
        let read = |path: &Path| fs::read_to_string(path).map_err(|e| failed("read", path, &e));
        let pair =
            KeyPair::from_pem(&read(&key)?).map_err(|e| failed("use the key in", &key, &e))?;
        return Issuer::from_ca_cert_pem(&read(&certificate)?, pair)
            .map_err(|e| failed("use the authority in", &certificate, &e));
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("kvd authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, years * 10);
    let pair = KeyPair::generate().map_err(|e| cannot_make(AUTHORITY, &e))?;
    let key_text = pair.serialize_pem();
    let issuer =
        CertifiedIssuer::self_signed(params, pair).map_err(|e| cannot_make(AUTHORITY, &e))?;
    write_new(&key, &key_text, 0o600)?;
    write_new(&certificate, &issuer.pem(), 0o644)?;
    made.push_str(&format!(
        "{} and its key: the authority; keep the key apart from the members\n",
        certificate.display()
    ));
    authority(dir, years, made)
}

fn params(subject: &Subject, years: u32) -> std::result::Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(subject.hosts.clone())?;
    params.distinguished_name = common_name(&subject.name);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    // A member is a client of the others.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if !subject.hosts.is_empty() {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, years);
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

#[expect(
    clippy::disallowed_methods,
    reason = "a certificate's dates are those of the world, not of a simulation"
)]
fn valid_for(params: &mut CertificateParams, years: u32) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let now = rcgen::date_time_ymd(1970, 1, 1) + now;
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + YEAR * years;
}

fn certificate_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.crt"))
}

fn key_of(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.key"))
}

/// Writes a whole file in place of one that may be there.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|e| failed("write", path, &e))
}

fn failed(action: &str, path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Io,
        format!("cannot {action} {}: {error}", path.display()),
    )
}

fn cannot_make(name: &str, error: &rcgen::Error) -> Failure {
    Failure::bad_args(format!("cannot make a certificate for {name}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn args(dir: &Path, members: &[&str], renew: bool) -> CreateArgs {
        CreateArgs {
            dir: dir.to_owned(),
            years: 5,
            clients: vec!["admin".into()],
            renew,
            members: members.iter().map(|m| (*m).to_owned()).collect(),
        }
    }

    fn create_all(args: &CreateArgs) -> Result<String> {
        let mut made = String::new();
        create(args, &subjects(args)?, &mut made)?;
        Ok(made)
    }

    #[test]
    fn a_second_run_keeps_the_authority_and_refuses_to_overwrite() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("certs");
        let made = create_all(&args(
            &dir,
            &["n1=10.0.0.1,n1.example", "n2=10.0.0.2"],
            false,
        ));
        assert_eq!(made.unwrap().lines().count(), 4);
        let authority = fs::read(dir.join("ca.crt")).unwrap();
        let key = fs::metadata(dir.join("n1.key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);

        let again = create_all(&args(&dir, &["n3=10.0.0.3"], false)).unwrap_err();
        assert!(again.message.unwrap().contains("--renew"), "admin exists");
        assert!(!dir.join("n3.crt").exists(), "all or nothing");

        let before = fs::read(dir.join("admin.crt")).unwrap();
        create_all(&args(&dir, &["n3=10.0.0.3"], true)).unwrap();
        assert_ne!(fs::read(dir.join("admin.crt")).unwrap(), before);
        assert_eq!(fs::read(dir.join("ca.crt")).unwrap(), authority);
    }

    #[test]
    fn names_that_make_no_file_are_refused() {
        let root = tempfile::tempdir().unwrap();
        for wrong in [
            "n1",
            "n1=",
            "=10.0.0.1",
            "ca=10.0.0.1",
            "../n1=10.0.0.1",
            "admin=10.0.0.1",
        ] {
            let refused = create_all(&args(root.path(), &[wrong], false));
            assert!(refused.is_err(), "{wrong}");
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
