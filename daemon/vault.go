package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bailey-platform/bailey/vault"
)

// VaultKeyFile is where the key is that secrets are sealed with, unless vault-key names
// another.
func (c *Config) VaultKeyFile() string { return filepath.Join(c.Data, "vault.key") }

func (c *Config) vaultKey() string {
	if c.VaultKey == "" {
		return "file:" + c.VaultKeyFile()
	}
	return c.VaultKey
}

func (c *Config) vaultOldKeys() []string {
	keys := strings.Split(c.VaultOldKeys, ",")
	for i := range keys {
		keys[i] = strings.TrimSpace(keys[i])
	}
	return slices.DeleteFunc(keys, func(s string) bool { return s == "" })
}

func (c *Config) checkVault() error {
	if err := vault.CheckURL(c.vaultKey()); err != nil {
		return badSetting("vault-key", "%s", err)
	}
	for _, key := range c.vaultOldKeys() {
		if err := vault.CheckURL(key); err != nil {
			return badSetting("vault-old-keys", "%s", err)
		}
	}
	return nil
}

func (c *Config) newVault() (*vault.Vault, error) {
	return vault.New(vault.Options{Key: c.vaultKey(), Old: c.vaultOldKeys(), Env: os.LookupEnv})
}
