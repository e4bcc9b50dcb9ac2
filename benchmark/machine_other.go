//go:build !linux

package main

import (
	"context"
	"errors"
	"runtime"
	"time"
)

// The figures need Linux's accounting. Elsewhere the command only builds.

var errLinuxOnly = errors.New("this command needs Linux")

func processCPU() (time.Duration, error) { return 0, errLinuxOnly }
func residentBytes() (int64, error)      { return 0, errLinuxOnly }
func openFileLimit() (int, error)        { return 0, errLinuxOnly }
func systemName() string                 { return runtime.GOOS }
func cpuModel() string                   { return "" }
func memoryBytes() int64                 { return 0 }

func startPinned(context.Context, string, int) (*worker, error) { return nil, errLinuxOnly }

type fanOutClient struct{}

func (*fanOutClient) obey(order) (reply, error) { return reply{}, errLinuxOnly }
