#![no_main]
aspo_fuzz::target!(models::config);
