//! Integration tests: real servers on port 0 and real files.

mod cli;
mod client;
mod disk;
mod example;
mod faults;
mod health;
mod http;
mod http_events;
mod http_faults;
mod http_publish;
mod http_support;
mod index;
mod kill;
mod list;
mod model;
mod network;
mod overload;
mod protocol;
mod publish;
mod restart;
mod restore;
mod support;
mod unread;
mod validation;
