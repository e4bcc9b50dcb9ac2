package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// machine says where and with what the figures were taken.
type machine struct {
	Date     string            `json:"date"`
	CPUs     int               `json:"cpus"`
	CPU      string            `json:"cpu"`
	Memory   int64             `json:"memory_bytes"`
	System   string            `json:"system"`
	Go       string            `json:"go"`
	Versions map[string]string `json:"versions"`
}

func describeMachine() machine {
	m := machine{
		Date: time.Now().UTC().Format("2006-01-02 15:04 MST"),
		CPUs: runtime.NumCPU(),
		Go:   runtime.Version(),
		// A virtual machine may not tell.
		CPU:      cpuModel(),
		Memory:   memoryBytes(),
		System:   systemName(),
		Versions: map[string]string{},
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return m
	}
	for _, dep := range info.Deps {
		if dep.Replace != nil {
			continue // this project itself, as it is in the working tree
		}
		if slices.ContainsFunc(systems, func(s *system) bool { return s.module == dep.Path }) || dep.Path == "github.com/lesismal/nbio" {
			m.Versions[dep.Path] = dep.Version
		}
	}
	return m
}

// String is the line above the tables.
func (m machine) String() string {
	var versions []string
	for path, version := range m.Versions {
		versions = append(versions, path+" "+version)
	}
	slices.Sort(versions)
	cpu := m.CPU
	if cpu == "" {
		cpu = runtime.GOARCH
	}
	return fmt.Sprintf("%s. %d CPUs (%s), %.0f GiB, %s, %s, loopback, server and client in separate processes. %s.",
		m.Date, m.CPUs, cpu, float64(m.Memory)/(1<<30), m.System, m.Go, strings.Join(versions, ", "))
}
