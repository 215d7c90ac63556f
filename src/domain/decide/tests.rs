//! Rules of the node, as sentences: given what has happened, when something comes in, then this follows.

mod alert;
mod any;
mod follow;
mod follow_up;
mod handover;
mod health;
mod site;

mod anew;
mod commands;
mod config;
mod lifecycle;
mod meeting;
mod release;
mod whose;
