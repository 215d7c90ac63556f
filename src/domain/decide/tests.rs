//! Rules of the node, as sentences: given what has happened, when something comes in, then this follows.

mod alert;
mod any;
mod follow;
mod health;
mod site;

mod anew;
mod commands;
mod lifecycle;
mod meeting;
mod release;
mod whose;
