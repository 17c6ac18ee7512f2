package firewall

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

// firewalld rejects what comes from a device that is in no zone, and what clients send
// to published ports. So our bridges get a zone that accepts, as Docker's do, and a
// policy lets clients send to it. All of it is also permanent: after a reload, nobody
// may be there to tell firewalld again.
const (
	zoneName   = "fastbr"
	policyName = "fastbr-forwarding"
)

// The settings of the zone and the policy, as the daemon takes them
// (firewalld.dbus(5)).
var (
	zoneSettings = map[string]any{"target": "ACCEPT", "short": "fastbr", "forward": true, "masquerade": false,
		"description": "Bridges of fastbr. Everything is accepted. It goes with the last network, unless it has been changed."}
	policySettings = map[string]any{"target": "ACCEPT", "short": "fastbr", "masquerade": false,
		"ingress_zones": []string{"ANY"}, "egress_zones": []string{zoneName},
		"description": "Lets others send to fastbr's bridges: to published ports. It goes with the zone fastbr."}
)

// The daemon's names on the bus (firewalld.dbus(5)).
const (
	busName    = "org.fedoraproject.FirewallD1"
	busPath    = "/org/fedoraproject/FirewallD1"
	configPath = busPath + "/config"
	ofZones    = busName + ".zone"
	ofPolicies = busName + ".policy"
	ofConfig   = busName + ".config"
)

// daemonPatience is how long firewalld may take, from when it is looked for until the
// last call that follows. A reload takes a second or two.
const daemonPatience = 30 * time.Second

// ofFirewalld tells whether firewalld keeps the chain. At each reload it throws away
// what others have added, so we add nothing there.
func (c *chain) ofFirewalld() bool { return c.table.name == "firewalld" }

// daemon is a firewalld that keeps this namespace's rules.
type daemon struct {
	conn *dbus.Conn
	ctx  context.Context
	end  func()
}

// daemon finds the firewalld of this namespace. It is nil if there is none, or if it
// cannot be reached.
func (rs *ruleset) daemon() *daemon {
	if rs.chains[table{"inet", "firewalld"}] == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), daemonPatience)
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		cancel()
		return nil
	}
	d := &daemon{conn, ctx, func() { _ = conn.Close(); cancel() }}
	var pid uint32
	err = conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetConnectionUnixProcessID", 0, busName).Store(&pid)
	if err != nil || !sharesNetwork(pid) {
		d.end()
		return nil
	}
	return d
}

// sharesNetwork tells whether a process is in the network namespace of this thread.
func sharesNetwork(pid uint32) bool {
	own, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return false
	}
	other, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
	return err == nil && os.SameFile(own, other)
}

// call calls a method of the daemon. out is a pointer to the result, or nil.
func (d *daemon) call(path dbus.ObjectPath, method string, out any, args ...any) error {
	c := d.conn.Object(busName, path).CallWithContext(d.ctx, method, dbus.FlagNoAutoStart, args...)
	err := c.Err
	if err == nil && out != nil {
		err = c.Store(out)
	}
	if err != nil {
		return fmt.Errorf("firewalld: %s: %w", method[strings.LastIndex(method, ".")+1:], err)
	}
	return nil
}

// list calls a method that takes nothing and returns names.
func (d *daemon) list(path dbus.ObjectPath, method string) (names []string, err error) {
	err = d.call(path, method, &names)
	return names, err
}

// zoneOf is the zone that a device is in, "" if it is in none.
func (d *daemon) zoneOf(device string) (zone string, err error) {
	err = d.call(busPath, ofZones+".getZoneOfInterface", &zone, device)
	return zone, err
}

// ensureZone puts the networks' bridges in the zone. A bridge that somebody has put in
// another zone stays there. If it fails, Findings says what to do.
func (rs *ruleset) ensureZone(networks []Network, say func(string, ...any)) {
	d := rs.daemon()
	if d == nil {
		return
	}
	defer d.end()
	if err := d.ensure(networks, say); err != nil {
		say("%v", err)
	}
}

func (d *daemon) ensure(networks []Network, say func(string, ...any)) error {
	var homeless []string
	for _, n := range networks {
		zone, err := d.zoneOf(n.Bridge.Name)
		if err != nil {
			return err
		}
		if zone == "" {
			homeless = append(homeless, n.Bridge.Name)
		}
	}
	if len(homeless) == 0 {
		return nil
	}
	if err := d.makeZone(say); err != nil {
		return err
	}
	stored, err := d.stored(ofConfig+".getZoneByName", zoneName)
	if err != nil {
		return err
	}
	for _, bridge := range homeless {
		// What is permanent comes first: a bridge that is only in the running zone does
		// not look homeless to the next command.
		var zone string
		if err := d.call(configPath, ofConfig+".getZoneOfInterface", &zone, bridge); err != nil {
			return err
		}
		if zone == "" {
			if err := d.call(stored, ofConfig+".zone.addInterface", nil, bridge); err != nil {
				return err
			}
		}
		if err := d.call(busPath, ofZones+".addInterface", nil, zoneName, bridge); err != nil {
			return err
		}
		say("firewalld: put %s in the zone %s, which accepts", bridge, zoneName)
	}
	return nil
}

// stored finds the permanent configuration of a zone or a policy.
func (d *daemon) stored(find, name string) (path dbus.ObjectPath, err error) {
	err = d.call(configPath, find, &path, name)
	return path, err
}

// makeZone makes the zone and the policy if they are missing. firewalld makes both only
// in its permanent configuration, so a reload follows.
func (d *daemon) makeZone(say func(string, ...any)) error {
	loaded := true
	for _, x := range []struct {
		name, now, stored, add string
		settings               map[string]any
	}{
		{zoneName, ofZones + ".getZones", ofConfig + ".getZoneNames", ofConfig + ".addZone2", zoneSettings},
		{policyName, ofPolicies + ".getPolicies", ofConfig + ".getPolicyNames", ofConfig + ".addPolicy", policySettings},
	} {
		stored, err := d.list(configPath, x.stored)
		if err != nil {
			return err
		}
		if !slices.Contains(stored, x.name) {
			if err := d.call(configPath, x.add, nil, x.name, variants(x.settings)); err != nil {
				return err
			}
		}
		now, err := d.list(busPath, x.now)
		if err != nil {
			return err
		}
		loaded = loaded && slices.Contains(now, x.name)
	}
	if loaded {
		return nil
	}
	say("firewalld: made the zone %s and the policy %s, and reloaded it", zoneName, policyName)
	return d.call(busPath, busName+".reload", nil)
}

func variants(m map[string]any) map[string]dbus.Variant {
	out := map[string]dbus.Variant{}
	for k, v := range m {
		out[k] = dbus.MakeVariant(v)
	}
	return out
}

// leaveZone takes a network's bridge out of the zone. With the last bridge it deletes
// the zone and the policy for good. firewalld forgets them at its next reload; until
// then an empty zone does nothing. If the zone was changed since fastbr made it, both
// stay.
func (rs *ruleset) leaveZone(n Network) error {
	d := rs.daemon()
	if d == nil {
		return nil
	}
	defer d.end()
	zone, err := d.zoneOf(n.Bridge.Name)
	if err != nil || zone != zoneName && zone != "" {
		return err
	}
	if err := d.leaveStored(n.Bridge.Name); err != nil || zone == "" {
		return err
	}
	return d.call(busPath, ofZones+".removeInterface", nil, zoneName, n.Bridge.Name)
}

// leaveStored is leaveZone's part in the permanent configuration. It comes first, so that
// a command that was killed in between is finished by the next one.
func (d *daemon) leaveStored(bridge string) error {
	names, err := d.list(configPath, ofConfig+".getZoneNames")
	if err != nil || !slices.Contains(names, zoneName) {
		return err
	}
	path, err := d.stored(ofConfig+".getZoneByName", zoneName)
	if err != nil {
		return err
	}
	var now map[string]dbus.Variant
	if err := d.call(path, ofConfig+".zone.getSettings2", &now); err != nil {
		return err
	}
	bridges, _ := now["interfaces"].Value().([]string)
	if delete(now, "interfaces"); !asMade(now, zoneSettings) {
		return nil
	}
	if !slices.Contains(bridges, bridge) {
		return nil
	}
	if len(bridges) > 1 {
		return d.call(path, ofConfig+".zone.removeInterface", nil, bridge)
	}
	if err := d.removePolicy(); err != nil { // the policy names the zone
		return err
	}
	return d.call(path, ofConfig+".zone.remove", nil)
}

func (d *daemon) removePolicy() error {
	names, err := d.list(configPath, ofConfig+".getPolicyNames")
	if err != nil || !slices.Contains(names, policyName) {
		return err
	}
	path, err := d.stored(ofConfig+".getPolicyByName", policyName)
	if err != nil {
		return err
	}
	return d.call(path, ofConfig+".policy.remove", nil)
}

// asMade tells whether settings are still those that fastbr made. What the daemon has
// added by itself does not count: that is false, 0 or empty, or the priority.
func asMade(now map[string]dbus.Variant, made map[string]any) bool {
	for k, v := range made {
		if !reflect.DeepEqual(now[k].Value(), v) {
			return false
		}
	}
	for k, v := range now {
		if _, ok := made[k]; !ok && k != "priority" && !reflect.ValueOf(v.Value()).IsZero() {
			return false
		}
	}
	return true
}

// zoned are the networks whose bridges are in the zone.
func (rs *ruleset) zoned(networks []Network) (out []Rule) {
	d := rs.daemon()
	if d == nil {
		return nil
	}
	defer d.end()
	for _, n := range networks {
		if zone, err := d.zoneOf(n.Bridge.Name); err == nil && zone == zoneName {
			out = append(out, Rule{"firewalld zone " + zoneName, n.Bridge.Name, n.Name, "everything"})
		}
	}
	return out
}

// firewalldCommands are the commands that do the same as ensureZone, permanently.
func firewalldCommands(networks []Network) string {
	zone := "firewall-cmd --permanent --zone=fastbr --set-target=ACCEPT"
	for _, n := range networks {
		zone += " && firewall-cmd --permanent --zone=fastbr --add-interface=" + n.Bridge.Name
	}
	return strings.Join([]string{
		"firewall-cmd --permanent --new-zone=fastbr",
		zone,
		"firewall-cmd --permanent --new-policy=fastbr-forwarding",
		"firewall-cmd --permanent --policy=fastbr-forwarding --set-target=ACCEPT",
		"firewall-cmd --permanent --policy=fastbr-forwarding --add-ingress-zone=ANY",
		"firewall-cmd --permanent --policy=fastbr-forwarding --add-egress-zone=fastbr",
		"firewall-cmd --reload",
	}, " && ")
}

// firewalldRemedy says what to do about a chain of firewalld's that drops a network's
// packets. It is the end of a sentence.
func (rs *ruleset) firewalldRemedy(n Network, networks []Network) string {
	d := rs.daemon()
	if d == nil {
		return "give firewalld a zone for it: " + firewalldCommands(networks)
	}
	defer d.end()
	switch zone, err := d.zoneOf(n.Bridge.Name); {
	case err != nil:
		return err.Error()
	case zone == "":
		return mendsItself
	case zone == zoneName:
		return fmt.Sprintf("the zone %s and the policy %s are not as fastbr makes them: see firewall-cmd --info-zone=%s, --info-policy=%s",
			zoneName, policyName, zoneName, policyName)
	default:
		return fmt.Sprintf("it is in the zone %s; to have it in fastbr's: firewall-cmd --zone=%s --remove-interface=%s && firewall-cmd --permanent --zone=%s --remove-interface=%s && fastbr up",
			zone, zone, n.Bridge.Name, zone, n.Bridge.Name)
	}
}

// mendsItself is the remedy where only Ensure has to run again.
const mendsItself = "the next command that changes something lets it through, 'fastbr serve' does at once"
