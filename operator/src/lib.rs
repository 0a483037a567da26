//! The operator: watches what people declare, runs it, and decides what runs may do.

pub mod gate;
pub mod journal;
pub mod service;
pub mod tls;
