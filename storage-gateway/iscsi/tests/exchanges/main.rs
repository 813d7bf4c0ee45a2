//! Exchanges between the initiator and targets that are written down here, PDU by PDU.

mod login;
mod pdus;
mod reads;
