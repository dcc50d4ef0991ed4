#![no_main]
aspo_fuzz::target!(data::records);
