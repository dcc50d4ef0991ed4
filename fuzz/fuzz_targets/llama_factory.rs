#![no_main]
aspo_fuzz::target!(data::llama_factory);
