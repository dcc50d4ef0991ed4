#![no_main]
aspo_fuzz::target!(data::source);
