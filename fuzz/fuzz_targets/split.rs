#![no_main]
aspo_fuzz::target!(segment::split);
