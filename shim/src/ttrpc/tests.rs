//! Client and server against each other over socket pairs.
