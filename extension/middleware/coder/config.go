package coder

// Bits of the reserved byte. 1 to 4 are free for coders of your own.
const (
	// FlagBitOpenTracing is that of package tracing.
	FlagBitOpenTracing = 0
	// FlagBitCrypto is that of package crypto.
	FlagBitCrypto = 5
	// FlagBitZstd is that of package zstd.
	FlagBitZstd = 6
	// FlagBitGZip is that of package gzip.
	FlagBitGZip = 7
)
