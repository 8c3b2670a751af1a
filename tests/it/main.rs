//! Integration tests: real servers on port 0 and real files.

mod cli;
mod client;
mod disk;
mod example;
mod faults;
mod health;
mod index;
mod kill;
mod list;
mod model;
mod overload;
mod publish;
mod restart;
mod support;
mod validation;
