//! Rules of the node, as sentences: given what has happened, when something comes in, then this follows.

mod any;
mod site;

mod commands;
mod lifecycle;
mod meeting;
