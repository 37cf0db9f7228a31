//! Which plugin has set what: two plugins that set the same is an error that names both.
//!
//! A plugin takes over from an earlier one by removing first what that has set; after this nobody else can set it.

use std::fmt;

use super::proto::{Field, OwningPlugins, mark_removed, removed};

/// Two plugins want the same.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("NRI plugins {first:?} and {second:?} both tried to set {what} of container {container}")]
pub(crate) struct Conflict {
    pub(crate) first: String,
    pub(crate) second: String,
    pub(crate) what: String,
    pub(crate) container: String,
}

/// The owners of what was set so far, by container.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Owners(pub(crate) OwningPlugins);

impl Owners {
    /// Notes that `plugin` sets a field.
    pub(crate) fn claim(&mut self, container: &str, field: Field, plugin: &str) -> Result<(), Conflict> {
        let owner = self.0.owners.entry(container.to_owned()).or_default().simple.entry(field as i32).or_default();
        take(owner, plugin).map_err(|first| conflict(first, plugin, &field.name(), container))
    }

    /// Notes that `plugin` sets one value of a field that has several.
    pub(crate) fn claim_key(&mut self, container: &str, field: Field, key: &str, plugin: &str) -> Result<(), Conflict> {
        let fields = self.0.owners.entry(container.to_owned()).or_default();
        let owner = fields.compound.entry(field as i32).or_default().owners.entry(key.to_owned()).or_default();
        take(owner, plugin).map_err(|first| conflict(first, plugin, &format!("{} {key:?}", field.name()), container))
    }

    /// Notes one more owner of a field that is only added to.
    pub(crate) fn join(&mut self, container: &str, field: Field, plugin: &str) {
        let owner = self.0.owners.entry(container.to_owned()).or_default().simple.entry(field as i32).or_default();
        match owner.as_str() {
            "" => *owner = plugin.to_owned(),
            others if others.split(',').any(|other| other == plugin) => {}
            _ => *owner = format!("{owner},{plugin}"),
        }
    }

    /// Notes that `plugin` has removed what another one had set.
    pub(crate) fn clear(&mut self, container: &str, field: Field, plugin: &str) {
        let fields = self.0.owners.entry(container.to_owned()).or_default();
        fields.simple.insert(field as i32, mark_removed(plugin));
    }

    /// The same of one value.
    pub(crate) fn clear_key(&mut self, container: &str, field: Field, key: &str, plugin: &str) {
        let fields = self.0.owners.entry(container.to_owned()).or_default();
        fields.compound.entry(field as i32).or_default().owners.insert(key.to_owned(), mark_removed(plugin));
    }

    pub(crate) fn of(&self, container: &str, field: Field) -> Option<&str> {
        self.0.owners.get(container)?.simple.get(&(field as i32)).map(String::as_str)
    }

    /// The values of a field that have an owner, with it.
    pub(crate) fn of_keys(&self, container: &str, field: Field) -> Vec<(&str, &str)> {
        let compound = self.0.owners.get(container).and_then(|fields| fields.compound.get(&(field as i32)));
        let owners = compound.into_iter().flat_map(|compound| &compound.owners);
        owners.map(|(key, owner)| (key.as_str(), owner.as_str())).collect()
    }
}

impl Field {
    /// As messages call it.
    fn name(self) -> impl fmt::Display {
        self.as_str_name().to_lowercase().replace('_', " ")
    }
}

/// Fails with the other owner's name.
fn take(owner: &mut String, plugin: &str) -> Result<(), String> {
    let present = removed(owner).unwrap_or(owner);
    if !present.is_empty() && present != plugin {
        return Err(present.to_owned());
    }
    *owner = plugin.to_owned();
    Ok(())
}

fn conflict(first: String, second: &str, what: &dyn fmt::Display, container: &str) -> Conflict {
    Conflict { first, second: second.to_owned(), what: what.to_string(), container: container.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_plugins_that_set_the_same_are_both_named() {
        let mut owners = Owners::default();
        owners.claim("c", Field::MemLimit, "10-a").unwrap();
        owners.claim("c", Field::MemLimit, "10-a").unwrap();
        owners.claim("d", Field::MemLimit, "20-b").unwrap();
        let conflict = owners.claim("c", Field::MemLimit, "20-b").unwrap_err();
        assert_eq!(
            conflict.to_string(),
            "NRI plugins \"10-a\" and \"20-b\" both tried to set mem limit of container c"
        );
        owners.claim_key("c", Field::Env, "A", "10-a").unwrap();
        owners.claim_key("c", Field::Env, "B", "20-b").unwrap();
        let conflict = owners.claim_key("c", Field::Env, "A", "20-b").unwrap_err();
        assert_eq!(
            conflict.to_string(),
            "NRI plugins \"10-a\" and \"20-b\" both tried to set env \"A\" of container c"
        );
    }

    #[test]
    fn who_removes_a_value_may_set_it_and_nobody_else_any_more() {
        let mut owners = Owners::default();
        owners.claim_key("c", Field::Env, "A", "10-a").unwrap();
        owners.clear_key("c", Field::Env, "A", "20-b");
        assert_eq!(owners.claim_key("c", Field::Env, "A", "30-c").unwrap_err().first, "20-b");
        owners.claim_key("c", Field::Env, "A", "20-b").unwrap();
        assert_eq!(owners.of_keys("c", Field::Env), [("A", "20-b")]);
        owners.clear("c", Field::Args, "20-b");
        owners.claim("c", Field::Args, "20-b").unwrap();
        assert_eq!(owners.of("c", Field::Args), Some("20-b"));
    }

    #[test]
    fn a_field_that_is_added_to_has_several_owners() {
        let mut owners = Owners::default();
        for plugin in ["10-a", "20-b", "20-b"] {
            owners.join("c", Field::OciHooks, plugin);
        }
        assert_eq!(owners.of("c", Field::OciHooks), Some("10-a,20-b"));
        assert_eq!(owners.of("c", Field::Args), None);
    }
}
