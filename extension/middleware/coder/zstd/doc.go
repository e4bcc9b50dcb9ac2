// Package zstd compresses frames with Zstandard (RFC 8878), by
// github.com/klauspost/compress. It compresses better than gzip at several
// times its speed.
//
// Encoding: a frame that is longer than the threshold and not compressed yet has
// everything after its reserved byte replaced by one Zstandard frame that tells
// its length and has a checksum, if the result is shorter. Bit 6 of the reserved
// byte is set.
//
// Decoding: frames without the bit pass through. One that is damaged, that does
// not tell its length, that has bytes after its end, or that would become larger
// than MaxDecodedLen closes its connection; nothing is allocated for the latter.
//
// Concurrency: a coder may be used by any number of clients and servers. At most
// GOMAXPROCS frames are compressed and as many decompressed at a time, in the
// whole process.
//
// Ownership: frames that are given are not changed.
//
// Limits: decoding takes memory for the length that a frame tells, up to
// MaxDecodedLen; for one whose length turns out to be false up to three times
// that, until it is refused. Each of the GOMAXPROCS compressors keeps a few MiB
// once it has been used.
package zstd
