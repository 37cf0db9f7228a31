//! `ctr version`: the client's and the daemon's version.
//!
//! The stock client goes on to warn when the two differ. This one does not: the daemon reports the containerd version
//! whose API it serves, which is not a version of this program.

use crate::client::Client;
use crate::error::Error;

pub(crate) async fn print(client: &Client) -> Result<String, Error> {
    let server = client.version().version(client.request(())).await?.into_inner();
    Ok(render(env!("CARGO_PKG_VERSION"), &server.version, &server.revision))
}

fn render(client: &str, server: &str, revision: &str) -> String {
    // The two blanks after "Version:" line the values up.
    format!("Client:\n  Version:  {client}\n\nServer:\n  Version:  {server}\n  Revision: {revision}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_printed_in_line() {
        assert_eq!(
            render("0.1.0", "2.1.0", "abc"),
            "Client:\n  Version:  0.1.0\n\nServer:\n  Version:  2.1.0\n  Revision: abc\n"
        );
    }
}
