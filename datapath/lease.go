package datapath

import (
	"fmt"
	"time"
)

// fbr_flow.lease_len can hold MaxLease: jiffies are a millisecond at least.
const _ = uint16(MaxLease / time.Millisecond)

// changeConf writes nothing if change changes nothing: programs write there, too.
func (cl control) changeConf(change func(*tcFbrConf) error) error {
	var c tcFbrConf
	if err := cl.d.maps.FbrConf.Lookup(uint32(0), &c); err != nil {
		return fmt.Errorf("reading fbr_conf: %w", err)
	}
	before := c
	if err := change(&c); err != nil || c == before {
		return err
	}
	if err := cl.d.maps.FbrConf.Put(uint32(0), &c); err != nil {
		return fmt.Errorf("writing fbr_conf: %w", err)
	}
	return nil
}

// SetLease sets how long a direction of a flow may use the fast path after the
// kernel last let one of its packets through: 0 to MaxLease. 0 turns the fast
// path off. Leases already granted end.
func (d *Datapath) SetLease(l time.Duration) error {
	if l < 0 || l > MaxLease {
		return fmt.Errorf("lease %s is not between 0 and %s", l, MaxLease)
	}
	return d.control.changeConf(func(c *tcFbrConf) error {
		now, err := d.control.now()
		c.RevokedAt, c.Lease = now, jiffies(l, d.meta.Hz)
		return err
	})
}

// Lease returns the value of SetLease.
func (d *Datapath) Lease() (time.Duration, error) {
	var c tcFbrConf
	if err := d.maps.FbrConf.Lookup(uint32(0), &c); err != nil {
		return 0, fmt.Errorf("reading fbr_conf: %w", err)
	}
	return duration(uint64(c.Lease), d.meta.Hz), nil
}

// Revoke ends every lease: the next packet of each direction takes the kernel
// path. A packet that the kernel has judged before Revoke, and that reaches the
// last hook after it, may still grant a lease. To be sure, call Revoke again
// 100 ms later.
func (d *Datapath) Revoke() error {
	return d.control.changeConf(func(c *tcFbrConf) error {
		now, err := d.control.now()
		c.RevokedAt = now
		return err
	})
}

// cBool is a flag of struct fbr_conf.
func cBool(on bool) uint32 {
	if on {
		return 1
	}
	return 0
}

// SetOpened tells the programs for each family whether devices that they do not know forward
// only by fastbr's setting. Until the host is a router, what came in by one may then leave
// only by a bridge of fastbr's.
func (d *Datapath) SetOpened(ipv4, ipv6 bool) error {
	return d.control.changeConf(func(c *tcFbrConf) error {
		c.Opened, c.Opened6 = cBool(ipv4), cBool(ipv6)
		return nil
	})
}
