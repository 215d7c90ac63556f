//! Bearer tokens for a controller's HTTP face. A token stands for a key that the controller holds for a job: what is
//! asked with it is signed by that key, so it can do what the trust document grants to that key and nothing else.
//!
//! Only the SHA-256 of a token is kept. Keys of jobs are made and enrolled by `head::enrol`.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::domain::id::{Digest, Principal};
use crate::domain::time::UnixMicros;
use crate::head::folder::{StateFolder, write_whole};
use crate::wire::key::digest_of;

/// The version of the file's shape.
const VERSION: u8 = 1;

/// More tokens than anybody can keep apart.
pub const TOKENS_MAX: usize = 256;

/// The largest file, in bytes.
const BYTES_MAX: u64 = 64 * 1024;

/// What every token begins with, so that a scanner for secrets knows it.
const PREFIX: &str = "smgr_";

/// The tokens of one controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    v: u8,
    /// In the order in which they were made.
    pub tokens: Vec<Token>,
}

/// One token, without itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// SHA-256 of its text, in hex.
    pub sha256: String,
    /// Whose key it stands for.
    pub principal: Principal,
    /// When it was made.
    pub made_at: UnixMicros,
}

impl Token {
    /// Returns the name by which people and histories tell tokens apart.
    pub fn name(&self) -> &str {
        self.sha256.get(..8).unwrap_or(&self.sha256)
    }
}

impl Default for Tokens {
    fn default() -> Self {
        Self { v: VERSION, tokens: Vec::new() }
    }
}

impl Tokens {
    /// Returns where the tokens of a controller's folder are.
    pub fn path(folder: &StateFolder) -> PathBuf {
        folder.root().join("tokens.json")
    }

    /// Reads the tokens of a folder; none where there is no file.
    ///
    /// # Errors
    /// When the file cannot be read, or is not one of this version.
    pub fn read(folder: &StateFolder) -> io::Result<Self> {
        let bytes = match super::setup::read_capped(&Self::path(folder), BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            read => read?,
        };
        let tokens: Self = serde_json::from_slice(&bytes)?;
        match tokens.v {
            VERSION => Ok(tokens),
            other => Err(io::Error::other(format!("it is of version {other}, not {VERSION}"))),
        }
    }

    /// Writes them, whole or not at all.
    ///
    /// # Errors
    /// When the disk or the permissions refuse.
    pub fn write(&self, folder: &StateFolder) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        text.push(b'\n');
        write_whole(&Self::path(folder), &text, 0o600)
    }

    /// Makes a token and returns its text, which is nowhere else.
    ///
    /// # Errors
    /// When the machine has no randomness to give.
    pub fn make(&mut self, principal: Principal, now: UnixMicros) -> io::Result<String> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let text = format!("{PREFIX}{}", Digest(secret));
        self.tokens.push(Token { sha256: sha256_of(&text), principal, made_at: now });
        Ok(text)
    }

    /// Takes back the token of this name; says whether there was one.
    pub fn revoke(&mut self, name: &str) -> bool {
        let before = self.tokens.len();
        self.tokens.retain(|token| token.name() != name);
        self.tokens.len() < before
    }

    /// Finds what a text stands for. What is compared are digests, so how long it takes tells nothing of the text.
    pub fn find(&self, text: &str) -> Option<&Token> {
        let sha256 = sha256_of(text);
        self.tokens.iter().find(|token| token.sha256 == sha256)
    }
}

fn sha256_of(text: &str) -> String {
    digest_of(text.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_by_its_text_alone_and_is_not_in_the_file() {
        let temp = tempfile::tempdir().unwrap();
        let folder = StateFolder::new(temp.path());
        let mut tokens = Tokens::read(&folder).unwrap();
        let text = tokens.make("shop-deploy".parse().unwrap(), UnixMicros(1)).unwrap();
        tokens.write(&folder).unwrap();
        let read = Tokens::read(&folder).unwrap();
        assert_eq!(read, tokens);
        assert_eq!(read.find(&text).unwrap().principal.as_str(), "shop-deploy");
        assert!(read.find(&text[..text.len() - 1]).is_none() && read.find("").is_none());
        let file = std::fs::read_to_string(Tokens::path(&folder)).unwrap();
        assert!(!file.contains(&text[PREFIX.len()..]));
    }

    #[test]
    fn a_token_that_was_taken_back_stands_for_nothing() {
        let mut tokens = Tokens::default();
        let text = tokens.make("shop-deploy".parse().unwrap(), UnixMicros(1)).unwrap();
        let name = tokens.tokens[0].name().to_owned();
        assert!(tokens.revoke(&name) && !tokens.revoke(&name));
        assert!(tokens.find(&text).is_none());
    }
}
