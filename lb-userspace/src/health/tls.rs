//! TLS settings of HTTPS checks: one that trusts the system's roots, one that takes any certificate.
//!
//! A check is no secret channel: nothing but a path and a status goes over it, so by default it asks
//! only whether the server serves. Must never be used for anything but checks.

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio_rustls::TlsConnector;

/// Where distributions keep their roots; the first that exists counts.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why certificates cannot be verified here.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    #[error("no root certificates: none of {} exists (package ca-certificates)", BUNDLES.join(", "))]
    NoBundle,
    #[error("{path}: {reason}")]
    Unreadable { path: &'static str, reason: String },
}

/// Takes any certificate.
pub fn any_certificate() -> TlsConnector {
    let verifier = Arc::new(AnyCertificate(ring::default_provider()));
    let config = builder().dangerous().with_custom_certificate_verifier(verifier);
    TlsConnector::from(Arc::new(config.with_no_client_auth()))
}

/// Verifies certificates against the system's roots.
pub fn verified() -> Result<TlsConnector, RootsError> {
    let path =
        BUNDLES.into_iter().find(|path| Path::new(path).exists()).ok_or(RootsError::NoBundle)?;
    let unreadable = |error: rustls::pki_types::pem::Error| RootsError::Unreadable {
        path,
        reason: error.to_string(),
    };
    let certificates = CertificateDer::pem_file_iter(path)
        .map_err(unreadable)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(unreadable)?;
    let mut roots = RootCertStore::empty();
    // A root that this library cannot read costs only those that it signed.
    let (added, _ignored) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(RootsError::Unreadable { path, reason: "no certificate in it".into() });
    }
    Ok(TlsConnector::from(Arc::new(builder().with_root_certificates(roots).with_no_client_auth())))
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for the default versions")
}

/// Takes any certificate, but still makes the server prove that it holds the key.
#[derive(Debug)]
struct AnyCertificate(CryptoProvider);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
