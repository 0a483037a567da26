//! Every reason that a condition of ours may carry, one enum a kind. The words are API: metrics, Events and
//! columns use the same ones.

/// Declares an enum of CamelCase words together with their spelling.
macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$why:meta])* $word:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$why])* $word,)+ }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$word,)+];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$word => stringify!($word),)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

reasons! {
    /// Why a Model is Ready or is not.
    ModelReason {
        Ready,
        /// The installation does not serve this namespace.
        NamespaceNotEnabled,
        CredentialMissing,
        CredentialNotReady,
        FallbackMissing,
        FallbackNotReady,
        /// A Model names itself as its fallback.
        FallbackIsItself,
    }
}

reasons! {
    /// Why a Credential is Ready or is not.
    CredentialReason {
        Ready,
        /// No probe pod has reported yet.
        NotProbed,
        /// A probe pod could not run or said nothing.
        ProbeFailed,
        NamespaceNotEnabled,
        /// The Secret is absent or lacks the key: from inside a pod both look the same.
        KeyMissing,
        Empty,
        TrailingNewline,
        TooLarge,
    }
}

reasons! {
    /// Why a Tool is Ready or is not.
    ToolReason {
        Ready,
        NotProbed,
        ProbeFailed,
        NamespaceNotEnabled,
        CredentialMissing,
        CredentialNotReady,
        /// No connection to the server.
        Unreachable,
        /// The server refused the credential, or wants one.
        Unauthorized,
        /// The server answers, but not with a list of operations.
        ServerFailed,
        /// The ConfigMap with the OpenAPI document is absent or lacks the key: from inside a pod both look the same.
        DocumentMissing,
        /// What describes the operations cannot be used: the OpenAPI document, or `spec.http.operations`.
        DefinitionsInvalid,
        /// The ConfigMap with the authorities of `tls` is absent, lacks the key, or holds no certificates.
        CaBundleUnusable,
        /// The server defines operations otherwise than they were accepted: calls to those are held.
        Drifted,
        /// Its URL leads to an address, or to a Service of another namespace, that the installation does not list.
        DestinationNotAllowed,
        /// The Agent that `spec.agent` names is not there.
        AgentMissing,
    }
}

reasons! {
    /// Why an Agent is Ready or is not.
    AgentReason {
        Ready,
        Suspended,
        NamespaceNotEnabled,
        ModelMissing,
        ModelNotReady,
        ToolMissing,
        ToolNotReady,
        /// A listed operation is not among those that the Tool's server offers.
        OperationMissing,
        /// A listed operation is not what was accepted, and `onDrift` says to wait.
        ToolDrifted,
        PolicyMissing,
        /// A policy is not Ready and has no last good generation.
        PolicyNotReady,
        /// More policies judge one call than a question to people can name.
        PoliciesTooMany,
        /// `limits.costUSD` is set and the Model has no `pricesUSD`.
        PricesMissing,
        /// A Model or Tool names an address, or a Service of another namespace, that the installation does not list.
        DestinationNotAllowed,
        /// `outputSchema` is no JSON Schema that answers can be checked against.
        OutputSchemaInvalid,
    }
}

reasons! {
    /// Why an ApprovalPolicy is Ready or is not.
    PolicyReason {
        Ready,
        NamespaceNotEnabled,
        /// A rule is not what can be evaluated: it does not parse, names what is not there, or could take too long.
        RuleInvalid,
        /// A test says another verdict than the policy.
        TestFailed,
        /// Evaluating a rule took longer than the operator waits: calls that it judges are held.
        Overran,
    }
}

reasons! {
    /// Where an AgentRun stands, and with what it ended.
    RunReason {
        NamespaceNotEnabled,
        AgentMissing,
        AgentNotReady,
        Suspended,
        /// A limit of concurrent runs: its turn comes in order of creation.
        Queued,
        /// The pod was created and has not said Hello.
        PodStarting,
        /// The pod can't start: unschedulable, quota, image, mount.
        PodBlocked,
        Running,
        /// An earlier pod may still act: calls wait until it cannot any more.
        Quarantine,
        /// Its request to the model waits: `Model.spec.rateLimits`, or the provider asked for patience.
        RateLimited,
        /// Its runners keep getting lost before the run comes any further.
        Restarting,
        Cancelling,
        Completed,
        Cancelled,
        StepsExceeded,
        TokensExceeded,
        CostExceeded,
        /// It wrote as much into the journal as one run may.
        JournalExceeded,
        DeadlineExceeded,
        WaitExceeded,
        ModelFailed,
        ModelIncomplete,
        /// The model's last answers did not fit the Agent's `outputSchema`.
        OutputInvalid,
        ToolUnavailable,
        CredentialUnavailable,
        PodLost,
        RunnerCrashed,
        RunnerSilent,
        JournalLost,
        /// A call waits for people's yes.
        ApprovalPending,
        /// Nobody knows whether a call took effect: an Approval asks people.
        EffectUnknown,
        /// A tool's server defines an operation otherwise than it was accepted, and `onDrift` says to wait.
        DefinitionDrifted,
        /// The server of a call wants to know something: an Approval asks people.
        AnswerPending,
        /// A run of another Agent carries out one of its calls.
        ChildRunning,
        /// People ended the run, since nobody knew what became of a call.
        EndedByApprover,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_one_camel_case_word_as_metav1_wants_it() {
        let words = ModelReason::ALL.iter().map(|reason| reason.as_str());
        let words = words.chain(CredentialReason::ALL.iter().map(|reason| reason.as_str()));
        let words = words.chain(ToolReason::ALL.iter().map(|reason| reason.as_str()));
        let words = words.chain(AgentReason::ALL.iter().map(|reason| reason.as_str()));
        let words = words.chain(PolicyReason::ALL.iter().map(|reason| reason.as_str()));
        for word in words.chain(RunReason::ALL.iter().map(|reason| reason.as_str())) {
            assert!(word.starts_with(|first: char| first.is_ascii_uppercase()), "{word}");
            assert!(word.bytes().all(|byte| byte.is_ascii_alphanumeric()) && word.len() <= 63, "{word}");
        }
    }
}
