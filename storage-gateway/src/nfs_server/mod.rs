//! The built-in NFSv3 server.
