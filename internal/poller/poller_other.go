//go:build !linux

package poller

import (
	"errors"
	"fmt"
	"time"
)

// Supported tells whether New works on this system.
const Supported = false

var errSystem = fmt.Errorf("poller: %w on this system", errors.ErrUnsupported)

// Poller can't be made on this system.
type Poller struct{}

// New fails: see Supported.
func New(loops int, logf func(format string, args ...any)) (*Poller, error) { return nil, errSystem }

// Loops returns 0.
func (p *Poller) Loops() int { return 0 }

// Loop returns nil.
func (p *Poller) Loop(i int) *Loop { return nil }

// Next returns nil.
func (p *Poller) Next() *Loop { return nil }

// Stop does nothing.
func (p *Poller) Stop(limit time.Duration) error { return nil }

// Loop can't be made on this system.
type Loop struct{}

// Post returns false.
func (l *Loop) Post(t Task) bool { return false }

// Attach fails.
func (l *Loop) Attach(fd int, ev Events, r *Reg) (owned int, err error) { return -1, errSystem }

// Reg is never attached on this system.
type Reg struct{}

// Arm fails.
func (r *Reg) Arm() error { return errSystem }

// Detach does nothing.
func (r *Reg) Detach() {}

// CloseFD fails.
func CloseFD(fd int) error { return errSystem }
