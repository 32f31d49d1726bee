//! The cluster's own authority, and what it signs: one certificate for all API servers, one for each client.

use std::net::IpAddr;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

/// Signs what servers and clients of one cluster show each other.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, both PEM.
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Result<Self> {
        let mut params = named("the lab's authority", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// The certificate to trust, PEM.
    pub fn certificate(&self) -> String {
        self.0.pem()
    }

    /// Servers at any of these addresses.
    pub fn server(&self, addresses: &[IpAddr]) -> Result<Identity> {
        let mut names = vec!["kubernetes.default.svc".to_owned()];
        names.extend(addresses.iter().map(IpAddr::to_string));
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = named("kube-apiserver", None).distinguished_name;
        self.sign(params, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A user, and the group that it is in.
    pub fn client(&self, user: &str, group: &str) -> Result<Identity> {
        self.sign(named(user, Some(group)), ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Identity> {
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?.pem();
        Ok(Identity { certificate, key: key.serialize_pem() })
    }
}

/// The key pair that signs tokens of service accounts: the public half as certificate.
pub fn token_signer() -> Result<Identity> {
    let key = KeyPair::generate()?;
    Ok(Identity { certificate: key.public_key_pem(), key: key.serialize_pem() })
}

fn named(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params
}
