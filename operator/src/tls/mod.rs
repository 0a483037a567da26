//! The operator's own certificate authority and serving certificate. Makes, renews and serves them; where they
//! are kept is another module's business.

mod material;
mod reload;

#[cfg(test)]
mod tests;

pub use material::{Material, Renewal, trust_bundle};
pub use reload::Reloadable;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("making a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    #[error("the {part} cannot be read: {message}")]
    Unreadable { part: &'static str, message: String },
    #[error("the certificate cannot be served: {0}")]
    Unusable(#[from] rustls::Error),
}
