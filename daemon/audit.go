package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/bailey-platform/bailey/audit"
	"github.com/bailey-platform/bailey/audit/sink"
	"github.com/bailey-platform/bailey/telemetry"
)

// auditOff is the setting that keeps no audit record.
const auditOff = "off"

// AuditFile is where the audit record is kept; "" if none is.
func (c *Config) AuditFile() string {
	switch c.Audit {
	case auditOff:
		return ""
	case "":
		return filepath.Join(c.Data, "audit.jsonl")
	}
	return c.Audit
}

func (c *Config) checkAudit() error {
	if c.AuditRetainDays < 0 {
		return badSetting("audit-retain-days", "must not be negative")
	}
	if c.Audit == auditOff && c.AuditSinks != "" {
		return badSetting("audit-sinks", "there is no audit record to write to them: audit is off")
	}
	sinks, err := sink.OpenAll(c.AuditSinks, os.Stdout)
	if err != nil {
		return badSetting("audit-sinks", "%v", err)
	}
	for _, s := range sinks {
		_ = s.Close() // not used yet
	}
	return nil
}

// openAudit opens the audit record and writes down that the server starts, and
// with which settings.
func (d *Daemon) openAudit(registry prometheus.Registerer) error {
	path := d.cfg.AuditFile()
	if path == "" {
		d.log.Warn("no audit record is kept")
		return nil
	}
	sinks, err := sink.OpenAll(d.cfg.AuditSinks, os.Stdout)
	if err != nil {
		return fmt.Errorf("audit-sinks: %w", err)
	}
	log, err := audit.Open(path, audit.Options{
		Logger: d.log.With("part", "audit"),
		Retain: time.Duration(d.cfg.AuditRetainDays) * 24 * time.Hour,
		Sinks:  sinks,
	})
	if err != nil {
		return err
	}
	d.audit = log
	if err := telemetry.RegisterAudit(registry, "bailey", "what depends on it is", log); err != nil {
		return err
	}
	return log.Append(audit.Record{Action: audit.PlaneStart, Attrs: map[string]string{
		"version": telemetry.ReadBuild().Version, "config": d.cfg.changed(), "pid": fmt.Sprint(os.Getpid()),
	}})
}

// changed lists the settings that are not at their defaults, without secrets.
func (c *Config) changed() string {
	defaults := Defaults()
	var list []string
	standard := defaults.Settings()
	for i, s := range c.Settings() {
		if s.String() != standard[i].String() {
			list = append(list, s.Name+"="+s.Shown())
		}
	}
	if list == nil {
		return "defaults"
	}
	return strings.Join(list, " ")
}

// closeAudit ends the record, once nothing else can write to it.
func (d *Daemon) closeAudit() error {
	if d.audit == nil {
		return nil
	}
	_ = d.audit.Note(audit.Record{Action: audit.PlaneStop}) // logs by itself what it cannot write
	err := d.audit.Close()
	d.audit = nil
	return err
}
