//! Whether member look-ups in BTF end: they go through typedefs and into members without a name, and
//! damaged BTF may contain cycles.

use std::collections::BTreeMap;

use btfparse::TypeVariant;

/// Most types that one look-up may visit. The kernel's own need 25 (Linux 6.18).
const MOST: u32 = 1_000;

/// What is known of a type.
#[derive(Clone, Copy)]
enum Seen {
    /// It is on the path from the first type to here.
    OnTheWay,
    /// The number of types that a look-up from it visits.
    Types(u32),
}

/// Checks that no look-up is endless or too long.
pub(super) fn check(types: &BTreeMap<u32, TypeVariant>) -> Result<(), String> {
    let mut seen = BTreeMap::new();
    // Not recursive, because the depth is not known yet.
    let mut way = Vec::new();
    for start in types.keys() {
        if seen.contains_key(start) {
            continue;
        }
        way.push(*start);
        while let Some(&id) = way.last() {
            let next = types.get(&id).map(within).unwrap_or_default();
            if let Some(unknown) = next.iter().find(|id| !seen.contains_key(*id)) {
                seen.insert(id, Seen::OnTheWay);
                way.push(*unknown);
                continue;
            }
            let mut count = 1_u32;
            for id in next {
                match seen[&id] {
                    Seen::Types(types) => count = count.saturating_add(types),
                    Seen::OnTheWay => return Err(format!("type {id} contains itself")),
                }
            }
            if count > MOST {
                return Err(format!("type {id} nests more than {MOST} others"));
            }
            seen.insert(id, Seen::Types(count));
            way.pop();
        }
    }
    Ok(())
}

/// The types to which a look-up continues without consuming a part of its path.
fn within(of: &TypeVariant) -> Vec<u32> {
    let members = match of {
        TypeVariant::Fwd(named) => return vec![*named.tid()],
        TypeVariant::Typedef(named) => return vec![*named.tid()],
        TypeVariant::Const(named) => return vec![*named.tid()],
        TypeVariant::Volatile(named) => return vec![*named.tid()],
        TypeVariant::Restrict(named) => return vec![*named.tid()],
        TypeVariant::Struct(of) => of.member_list(),
        TypeVariant::Union(of) => of.member_list(),
        _ => return Vec::new(),
    };
    let nameless = members.iter().filter(|member| member.name().is_none());
    nameless.map(|member| member.tid()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::offsets::find;

    /// BTF of the types given, each three words, and members after those that have some.
    fn btf(types: &[u32]) -> Vec<u8> {
        const HEADER: u32 = 24;
        let strings = b"\0tcp_sock\0";
        let length = types.len() as u32 * 4;
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [HEADER, 0, length, length, strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(strings);
        bytes
    }

    const TCP_SOCK: u32 = 1;
    const STRUCT: u32 = 4 << 24;
    const TYPEDEF: u32 = 8 << 24;

    #[test]
    fn types_that_contain_themselves_are_refused() {
        // struct tcp_sock { struct tcp_sock; };
        let in_itself = [TCP_SOCK, STRUCT | 1, 8, 0, 1, 0];
        // typedef of a typedef of the first
        let named_after_itself = [TCP_SOCK, TYPEDEF, 2, TCP_SOCK, TYPEDEF, 1];
        for types in [&in_itself[..], &named_after_itself] {
            let message = find(&btf(types)).unwrap_err();
            assert!(message.contains("contains itself"), "{message}");
        }
    }

    #[test]
    fn a_look_up_that_would_double_with_each_level_is_refused() {
        // struct { struct next; struct next; }, sixty times over, and a last one without members.
        let mut types = Vec::new();
        for level in 1..=60 {
            types.extend([TCP_SOCK, STRUCT | 2, 8, 0, level + 1, 0, 0, level + 1, 0]);
        }
        types.extend([TCP_SOCK, STRUCT, 8]);
        let message = find(&btf(&types)).unwrap_err();
        assert!(message.contains("nests more than"), "{message}");
    }

    #[test]
    fn types_of_the_running_kernel_are_far_below_the_limit() {
        let Ok(kernel) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            return; // a machine without BTF cannot run the agent; its other tests can
        };
        find(&kernel).unwrap();
    }
}
