// Package readme keeps the promise that programs written after the README of
// the original arpc compile after a change of import paths and do what that
// README says. It has one test file per heading. Each holds code in the shape
// that users copied from there, as printed where it compiles and with its gaps
// filled where it does not, and runs it against a live server.
package readme
