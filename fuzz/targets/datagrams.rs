#![no_main]

libfuzzer_sys::fuzz_target!(
    init: weir_fuzz::seeds::write_all().expect("seeds can be written below the current folder"),
    |input: &[u8]| weir_fuzz::datagrams(input)
);
