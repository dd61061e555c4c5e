"""Parts of the fuzzer of compressed folders, see tests/storage/fuzz.py."""
