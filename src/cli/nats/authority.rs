//! The authority of an encrypted bus: it vouches for a server of our own, and for nothing else.
//!
//! Both certificates hold from 1970 on and have no end. They prove that the server has a key which this authority named,
//! and no date adds to that: a machine whose clock stands at 1970 has to find its bus, and so has one that ran for years,
//! since nothing but `smgr up` and `smgr node` could make new ones in time. What makes an end of a key is another: the
//! server has a new one each time, and the authority's lies beside the root key, which is worth more.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use crate::cli::context::short;
use crate::cli::error::CliError;
use crate::domain::code::Code;
use crate::head::folder::{StateFolder, write_new, write_whole};
use crate::wire::key::digest_of;

/// Writes the certificate of the authority, for everybody, and that of the server with a new key, which name it by `address`
/// and by `names`. The key of the authority is made once.
///
/// # Errors
/// When a name is none that a certificate can hold, the key is damaged, or the disk refuses.
pub(super) fn vouch(
    folder: &StateFolder,
    address: IpAddr,
    names: &BTreeSet<String>,
) -> Result<(), CliError> {
    let failed = |error: &dyn Error| {
        CliError::caused(Code::IO, "failed to make the certificate of the bus", error)
            .at(short(folder.root()))
    };
    let unmade = |error: rcgen::Error| failed(&error);
    let unwritten = |error: std::io::Error| failed(&error);
    // As a server sees itself, whatever it listens on.
    let mut all = BTreeSet::from([Ipv4Addr::LOCALHOST.to_string(), "localhost".to_owned()]);
    all.extend(Some(address).filter(|address| !address.is_unspecified()).map(|it| it.to_string()));
    all.extend(names.iter().cloned());

    let key = authority_key(folder)?;
    let authority = authority(&key);
    let vouching = authority.self_signed(&key).map_err(unmade)?.pem();
    let own = KeyPair::generate().map_err(unmade)?;
    let server = server(all).map_err(unmade)?;
    let server = server.signed_by(&own, &Issuer::new(authority, key)).map_err(unmade)?.pem();
    write_whole(&folder.bus_ca(), vouching.as_bytes(), 0o644).map_err(unwritten)?;
    // One file: a server that starts in between never finds a key that is not that of its certificate.
    let both = server + &own.serialize_pem();
    write_whole(&folder.bus_certificate(), both.as_bytes(), 0o600).map_err(unwritten)
}

fn authority_key(folder: &StateFolder) -> Result<KeyPair, CliError> {
    let path = folder.keys().join("bus-ca.key");
    let failed = |what: &str, error: &dyn Error| {
        CliError::caused(
            Code::IO,
            format!("failed to {what} the key that vouches for the bus"),
            error,
        )
        .at(short(&path))
    };
    if !path.exists() {
        let made = KeyPair::generate().map_err(|error| failed("make", &error))?;
        write_new(&path, made.serialize_pem().as_bytes(), 0o600)
            .map_err(|error| failed("make", &error))?;
    }
    let text = std::fs::read_to_string(&path).map_err(|error| failed("read", &error))?;
    KeyPair::from_pem(&text).map_err(|error| {
        failed("read", &error).hint(
            "bring it back from a backup; with another one, which `smgr up` makes where it is missing, every node has \
             to join again",
        )
    })
}

fn authority(key: &KeyPair) -> CertificateParams {
    // Named after its key: of two authorities a client can tell which one it lacks.
    let digest = digest_of(key.public_key_raw()).to_string();
    let mut params = lasting(CertificateParams::default(), &format!("smgr bus {}", &digest[..16]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn server(names: BTreeSet<String>) -> Result<CertificateParams, rcgen::Error> {
    let names: Vec<String> = names.into_iter().collect();
    let mut params = lasting(CertificateParams::new(names)?, "smgr bus");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn lasting(mut params: CertificateParams, name: &str) -> CertificateParams {
    params.not_before = date_time_ymd(1970, 1, 1);
    // What X.509 writes for "no end".
    params.not_after = date_time_ymd(9999, 12, 31);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::bus::vouches;

    #[test]
    fn the_authority_stays_and_the_key_of_the_server_is_another_each_time() {
        let temp = tempfile::tempdir().unwrap();
        let folder = StateFolder::new(temp.path());
        folder.make().unwrap();
        let key = folder.keys().join("bus-ca.key");
        let make = || {
            vouch(&folder, Ipv4Addr::UNSPECIFIED.into(), &BTreeSet::new()).unwrap();
            [&key, &folder.bus_certificate()].map(|path| fs::read_to_string(path).unwrap())
        };
        let ([before, first], [after, second]) = (make(), make());
        assert_eq!(before, after);
        assert_ne!(first, second);
        assert!(vouches(&fs::read_to_string(folder.bus_ca()).unwrap()));
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(key), mode(folder.bus_certificate())), (0o600, 0o600));
    }

    #[test]
    fn a_damaged_key_is_named_and_not_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let folder = StateFolder::new(temp.path());
        folder.make().unwrap();
        let key = folder.keys().join("bus-ca.key");
        fs::write(&key, "damaged").unwrap();
        let error = vouch(&folder, Ipv4Addr::LOCALHOST.into(), &BTreeSet::new()).unwrap_err();
        assert!(error.what.contains("failed to read the key that vouches"), "{error:?}");
        assert_eq!(fs::read_to_string(&key).unwrap(), "damaged");
        assert!(!folder.bus_ca().exists());
    }
}
