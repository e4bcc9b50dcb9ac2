package main

import (
	"os/exec"
	"runtime"
	"strings"
	"testing"
)

// Everything builds, runs and is reported; a second of it says nothing about speed.
func TestCompare(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /proc")
	}
	if out, err := exec.Command("../../examples/redis/install.sh").CombinedOutput(); err != nil {
		t.Fatalf("install.sh: %v\n%s", err, out)
	}
	var out strings.Builder
	if _, err := compare(&out, loads(5000), 1); err != nil {
		t.Fatal(err)
	}
	for _, c := range contestants() {
		if strings.Count(out.String(), c.name+" ") < 2*len(commands) {
			t.Errorf("no %s in\n%s", c.name, out.String())
		}
	}
}

func TestMedian(t *testing.T) {
	of := []result{{3, 1}, {1, 5}, {2, 2}}
	if m := median(of, perCPU); m != 2 {
		t.Errorf("median %v", m)
	}
	if m := median(of[:2], perSecond); m != 3 {
		t.Errorf("median %v", m)
	}
}
