package api

// What workers are told of the environment variables that a session's vaults have
// credentials for. All of it is an extension of this server.

// A SessionVariable is a variable that the box of a session is to have, with a
// placeholder for a value.
type SessionVariable struct {
	CredentialID      CredentialID         `json:"credential_id"`
	VaultID           VaultID              `json:"vault_id"`
	Name              string               `json:"name"`
	Networking        CredentialNetworking `json:"networking"`
	InjectionLocation InjectionLocation    `json:"injection_location"`
}

// SessionVariables are those of one session.
type SessionVariables struct {
	Data []SessionVariable `json:"data"`
}

// A VariableValue is the secret that a worker puts in the place of the placeholder.
type VariableValue struct {
	Type  string `json:"type"` // "variable_value"
	Value Secret `json:"value"`
}
